"""The laws that every merge method passes."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from evomerge.merging.methods import METHODS
from evomerge.recipes.parameters import Group, ParametersRecipe

if TYPE_CHECKING:
    from evomerge.sources.evidence import Evidence
    from evomerge.sources.source import Source


def recipe_of(
    name: str,
    models: Sequence[str],
    base: str,
    *,
    based: bool = True,
    seed: int = 11,
    options: Mapping[str, object] | None = None,
    **values: float | tuple[float, ...],
) -> ParametersRecipe:
    """Return a one-group recipe of a method.

    Args:
        name: of the method.
        models: of sources; the first ones, where the method takes a fixed number.
        base: of a source.
        based: false leaves out a base that the method takes but does not need.
        seed: of random masks.
        options: of the method.
        values: of its parameters, where they are not to have their defaults, or a half; a number
            is that of each model.

    >>> recipe_of("slerp", ["a", "b", "c"], "base", t=0.25).groups[0].values
    {'t': 0.25}
    """
    method = METHODS.get(name)
    models = tuple(models)[: method.models] if method.models else tuple(models)
    filled: dict[str, float | tuple[float, ...]] = {}
    for parameter in method.parameters:
        default = 0.5 if parameter.default is None else parameter.default
        value = values.get(parameter.name, default)
        if parameter.axis.per_model and not isinstance(value, tuple):
            value = (float(value),) * len(models)
        filled[parameter.name] = value
    takes_base = method.needs_base or (based and method.takes_base)
    return ParametersRecipe(
        name,
        models,
        (Group(None, None, filled),),
        base if takes_base else None,
        "float32",
        seed if method.draws else None,
        dict(options or {}),
    )


def merge_arrays(
    name: str,
    base: npt.ArrayLike,
    models: Sequence[npt.ArrayLike],
    *,
    based: bool = True,
    seed: int = 11,
    options: Mapping[str, object] | None = None,
    inputs: Sequence[npt.ArrayLike] = (),
    moments: Sequence[npt.ArrayLike] = (),
    **values: float | tuple[float, ...],
) -> np.ndarray:
    """Merge single float32 arrays through the real engine; return the float32 result.

    Args:
        name: of the method.
        base, models: arrays of one shape; a matrix where the method merges adapters, which then
            are of full rank.
        based, seed, options, values: see `recipe_of`.
        inputs: of methods that read them, a Gram matrix of each model's; random ones by default.
        moments: as `inputs`, of the arrays' shape.

    >>> merge_arrays("task_arithmetic", [1.0, 1.0], [[2.0, 1.0]], weight=0.5)
    array([1.5, 1. ], dtype=float32)
    """
    import torch
    from safetensors.torch import save_file

    from evomerge.merging.merger import Merger
    from evomerge.sources.evidence import Evidence
    from evomerge.sources.safetensors_file import read_header
    from evomerge.sources.source import Source

    with tempfile.TemporaryDirectory() as folder:
        names, hashes, opened = [], {}, {}
        for i, array in enumerate([base, *models]):
            file = Path(folder) / f"{i}.safetensors"
            tensor = torch.from_numpy(np.array(array, np.float32, order="C"))
            save_file({"model.layers.0.w.weight": tensor}, file)
            names.append(str(file))
            hashes[str(file)] = f"{i} {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}"
            known = Evidence()
            if i > 0:
                known = _evidence(name, tensor.numpy(), file, inputs[i - 1 : i], moments[i - 1 : i])
            # a tensor alone, of no architecture
            opened[str(file)] = Source(
                str(file), file.parent, {}, read_header(file), {}, evidence=known
            )
        if METHODS.get(name).family == "factored":
            for model in names[1:]:
                opened[model] = _as_adapter(opened[names[0]], opened[model])
        recipe = recipe_of(
            name, names[1:], names[0], based=based, seed=seed, options=options, **values
        )
        _, merged = next(Merger(opened, hashes).stream(recipe))
        copied: np.ndarray = merged.numpy().copy()
        return copied


def _evidence(
    name: str,
    array: np.ndarray,
    file: Path,
    inputs: Sequence[npt.ArrayLike],
    moments: Sequence[npt.ArrayLike],
) -> "Evidence":
    """Write what a method reads of a model beside its array; random, by the array alone."""
    from safetensors.numpy import save_file

    from evomerge.sources.evidence import Evidence

    reads = METHODS.get(name).reads
    rng = np.random.default_rng(np.frombuffer(array.tobytes(), np.uint8))
    beside = file.with_name(f"{file.stem}-{reads}.safetensors")
    key = "model.layers.0.w.weight"
    if reads == "inputs" and array.ndim == 2:
        taken = rng.normal(size=(2 * array.shape[1], array.shape[1]))
        gram = inputs[0] if inputs else taken.T @ taken / len(taken)
        save_file({key: np.asarray(gram, np.float32)}, beside)
        return Evidence(inputs=str(beside))
    if reads == "inputs":
        save_file({}, beside)
        return Evidence(inputs=str(beside))
    if reads == "curvature":
        moment = moments[0] if moments else rng.gamma(1.0, size=array.shape)
        save_file({key: np.asarray(moment, np.float32)}, beside)
        return Evidence(moments=str(beside))
    return Evidence()


def _as_adapter(base: "Source", model: "Source") -> "Source":
    """Return a model of matrices as an adapter of its base: W_0 + (W - W_0) I."""
    import torch
    from safetensors.torch import load_file, save_file

    from evomerge.sources.lora import Adapter, LowRank
    from evomerge.sources.safetensors_file import read_header

    file, factors = Path(f"{model.name}.adapter"), {}
    ((name, changed),) = load_file(model.name).items()
    difference = changed - load_file(base.name)[name]
    save_file({"A": torch.eye(changed.shape[1]), "B": difference}, file)
    stored = read_header(file)
    factors[name] = LowRank(stored["A"], stored["B"], 1.0, False)
    return replace(base, name=model.name, adapter=Adapter(file, factors, {}))


def _some_arrays(shape: tuple[int, ...], count: int, seed: int = 0) -> list[np.ndarray]:
    """Return a base and `count` models near it, float32."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return [base] + [base + rng.normal(size=shape).astype(np.float32) * 0.1 for _ in range(count)]


def law_keeps_shape_and_inputs(name: str) -> None:
    """Gives a finite tensor of the same shape, for 0-d, 1-element and odd shapes; inputs stay.

    Of shapes that adapters have, where the method merges those alone.

    >>> law_keeps_shape_and_inputs("linear")
    """
    method = METHODS.get(name)
    count, shapes = method.models or 3, [(), (1,), (64,), (7, 13), (2, 3, 5)]
    if method.family == "factored":  # adapters change matrices alone
        shapes = [(1, 1), (7, 13), (13, 2)]
    for shape in shapes:
        base, *models = _some_arrays(shape, count)
        before = [array.copy() for array in (base, *models)]
        merged = merge_arrays(name, base, models)
        assert merged.shape == shape and np.isfinite(merged).all()
        assert all(map(np.array_equal, before, (base, *models)))


def law_merging_equals_is_identity(name: str) -> None:
    """Merging copies of one model, the base too, gives that model (weights summing to one).

    >>> law_merging_equals_is_identity("linear")
    """
    count = METHODS.get(name).models or 3
    base = _some_arrays((8, 9), 1)[0]
    merged = merge_arrays(name, base, [base] * count, weight=(1.0 / count,) * count)
    assert np.allclose(merged, base, atol=1e-6)


def law_one_hot_gives_the_model(name: str) -> None:
    """Weight one on one model, none on the rest, all kept, gives that model; not if prepared.

    Nor where the models' order counts.

    >>> law_one_hot_gives_the_model("ties")
    """
    method = METHODS.get(name)
    if "weight" not in method.parameter or method.prepare or method.ordered:
        return
    base, *models = _some_arrays((6, 7), 3)
    count = method.models or 3
    weight = tuple(float(i == 1) for i in range(count))
    merged = merge_arrays(
        name,
        base,
        models[:count],
        weight=weight,
        density=1.0,
        gamma=0.0,
        threshold=0.0,
        least=1.0,
        scale=1.0,
    )
    assert np.allclose(merged, models[1], atol=1e-6)


def law_order_of_models_does_not_matter(name: str) -> None:
    """Permuting models with their values leaves the merge the same, up to rounding.

    >>> law_order_of_models_does_not_matter("task_arithmetic")
    """
    method = METHODS.get(name)
    if method.models or method.ordered:
        return
    base, *models = _some_arrays((6, 7), 3)
    weight = (0.2, 0.5, 0.9)
    merged = merge_arrays(name, base, models, weight=weight)
    other = merge_arrays(name, base, models[::-1], weight=weight[::-1])
    assert np.allclose(merged, other, atol=1e-5)


method_laws = (
    law_keeps_shape_and_inputs,
    law_merging_equals_is_identity,
    law_one_hot_gives_the_model,
    law_order_of_models_does_not_matter,
)
