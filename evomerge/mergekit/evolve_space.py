"""The space that mergekit-evolve searches, as a space of kind `parameters`.

Its genes are (layer group, model, filter or the rest, parameter); a candidate is a mergekit
configuration whose slices are the groups. So tensors before the layers take the first group's
values and those after them the last one's, by the same filters; with `smooth`, where the whole
model is one slice, all of them take the first knot's.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from evomerge.errors import BadInput, Fault
from evomerge.mergekit.evolve_form import GenomeForm
from evomerge.merging.methods import METHODS


class EvolveSpace(NamedTuple):
    """A space, with what is said of it.

    Attributes:
        space: a campaign's `space`.
        sigma: mergekit-evolve's sigma0 is a step of so much of the weights' range, for each 1.
        comments: key below `space` -> where it comes from.
        differs: one line for each thing that is not as in mergekit-evolve.

    >>> genome = GenomeForm(models=["a", "b"], merge_method="linear")
    >>> evolve_space(genome, ["a", "b"], 4, []).space["axes"]
    {'weight': {'low': 0.0, 'high': 1.0, 'start': 0.5}}
    """

    space: dict[str, Any]
    sigma: float
    comments: dict[str, str]
    differs: list[str]


def evolve_space(
    genome: GenomeForm, models: Sequence[str], layers: int, tensors: Iterable[str]
) -> EvolveSpace:
    """Return the space of a mergekit-evolve genome.

    Args:
        genome: what the configuration says.
        models: the names of those that are merged: without a base of task vectors.
        layers: of each model.
        tensors: their names, to tell filters that fit none.

    Raises:
        BadInput: layers cannot be cut into groups of this size.

    >>> genome = GenomeForm(models=["a", "b"], merge_method="slerp", layer_granularity=2)
    >>> evolve_space(genome, ["a", "b"], 6, []).space["layer_groups"]
    3
    """
    groups = _layer_groups(genome, layers)
    comments: dict[str, str] = {}
    differs: list[str] = []
    step = genome.layer_granularity
    runs = f"{step} of the {layers} layers" if step > 0 else "all layers together"
    comments["layer_groups"] = f"genome.layer_granularity: {runs}"
    space: dict[str, Any] = {"kind": "parameters", "method": genome.merge_method}
    comments["method"] = "genome.merge_method"
    if genome.merge_method == "slerp":
        axes, sigma = _slerp(space, models, differs)
    else:
        axes, sigma = _weighted(genome, differs)
        if genome.merge_method == "task_arithmetic" and genome.is_normalized:
            space["method"] = (
                "linear"  # W_0 + sum w_i (W_i - W_0) / sum w_i = sum w_i W_i / sum w_i
            )
            comments["method"] = "what task_arithmetic is with genome.normalize: true"
        if "normalize" in METHODS.get(space["method"]).options:
            space["options"] = {"normalize": genome.is_normalized}
            unsaid = " (mergekit-evolve's default)" if genome.normalize is None else ""
            comments["options"] = f"genome.normalize{unsaid}"
    space["layer_groups"] = groups
    filters = _filters(genome, tensors, differs)
    if filters:
        space["module_groups"] = filters
        comments["module_groups"] = "genome.filters; all other tensors are one more group"
    if genome.smooth:
        space["smooth"] = True
        comments["smooth"] = "genome.smooth"
    space["outside"] = "first" if genome.smooth else "nearest"
    comments["outside"] = (
        "as in mergekit's slices, where the tensors outside the layers have no genes"
    )
    space["axes"] = axes
    space["dtype"] = "bfloat16"
    comments["dtype"] = "in which mergekit-evolve writes its candidates"
    return EvolveSpace(space, sigma, comments, differs)


def _layer_groups(genome: GenomeForm, layers: int) -> int:
    step = genome.layer_granularity
    if step < 1:
        return 1
    if layers % step:
        divisors = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
        wrong = f"{step} does not divide the {layers} layers, and mergekit-evolve refuses it"
        raise BadInput(Fault("layer_granularity", wrong, f"write one of {divisors}"))
    return layers // step


def _weighted(genome: GenomeForm, differs: list[str]) -> tuple[dict[str, Any], float]:
    """Return axes of weights, and of densities if the method has some, and the steps' scale."""
    # Of normalized weights only the ratios count, so that a range of 1 leaves none of them out.
    high = 1.0 if genome.is_normalized else 2.0
    low = -1.0 if genome.allow_negative_weights else 0.0
    # mergekit-evolve counts a base among the models as one of them
    start = round(1.0 / len(genome.models), 6)
    axes: dict[str, Any] = {"weight": {"low": low, "high": high, "start": start}}
    there = "any number" if genome.allow_negative_weights else "the absolute value of any number"
    line = f"genome: a weight is {there} there, and {low:g} to {high:g} here"
    if genome.is_normalized:
        line += ", which is every ratio of weights" + (" and signs" if low < 0 else "")
    else:
        line += "; widen space.axes.weight if the best ones lie at its ends"
    differs.append(line)
    if "density" in genome.genes:
        axes["density"] = {"low": 0.0, "high": 1.0, "start": 1.0}
        line = "genome: densities begin at 0.95, not at 1, which is the end of their range"
        if high - low > 1.0:
            line += f", and their first step is {1 / (high - low):.2g} times as long as there"
        differs.append(line)
    if "density" in axes and low < 0 and genome.is_normalized:
        differs.append(
            "genome.normalize: elements are divided by the sum of the weights' absolute values;"
            " mergekit divides by the sum, which may be near 0 where some are negative"
        )
    if genome.merge_method == "dare_ties":
        differs.append(
            "genome.merge_method: masks are drawn from the campaign's seed, the same for every"
            " candidate; mergekit-evolve draws others for each"
        )
    return axes, 1.0 / (high - low)


def _slerp(
    space: dict[str, Any], models: Sequence[str], differs: list[str]
) -> tuple[dict[str, Any], float]:
    """Return the axes that stand for slerp's genes, one for each model there.

    mergekit-evolve takes the two models with the largest genes a >= b, and goes t = 1 / (1 +
    exp(a - b)) of the way from the former. For two models that is one number between 0 and 1.
    """
    if len(models) == 2:
        differs.append(
            "genome.merge_method: mergekit-evolve has a gene for each of the two models, of which"
            " only the difference counts; here that is one gene, t"
        )
        # dt = t (1 - t) d(b - a), at t = 1/2, of a difference of two
        return {"t": {"low": 0.0, "high": 1.0, "start": 0.5}}, math.sqrt(2.0) / 4.0
    space["method"] = "multislerp"
    differs.append(
        f"genome.merge_method: slerp of {len(models)} models takes two of them in each group there;"
        " here all of them have a part, by multislerp: this is another space"
    )
    start = round(1.0 / len(models), 6)
    return {"weight": {"low": 0.0, "high": 1.0, "start": start}}, 1.0


def _filters(genome: GenomeForm, tensors: Iterable[str], differs: list[str]) -> list[str]:
    """Return the filters that some tensor has, and say it of the others."""
    names, kept = list(tensors), []
    for part in dict.fromkeys(genome.filters or ()):
        if any(part in name for name in names):
            kept.append(part)
        else:
            differs.append(
                f"genome.filters: no tensor's name holds '{part}', so that its genes changed"
                " nothing; it is left out"
            )
    return kept
