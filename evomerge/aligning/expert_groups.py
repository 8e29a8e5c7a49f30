"""Which experts of a layer become one: those that routers ask for alike.

M-SMoE (Li et al. 2024, arXiv:2310.01334, section 3.2; reference code github.com/UNITES-Lab/MC-SMoE)
lets the experts that are used most stand for the others: each of the rest joins the one whose
router logits are most like its own.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from evomerge.aligning.line import tokenized
from evomerge.errors import BadInput, Fault
from evomerge.merging.live_model import LiveModel
from evomerge.sources.source import Source
from evomerge.sources.texts import read_texts
from evomerge.sources.trust import NOBODY, Trust
from evomerge.yaml_file import MOST_JSON, parse_json, read_text


class Asked(NamedTuple):
    """How the experts of one layer are asked.

    Attributes:
        usage: (experts,) shares of all that is asked; all equal where nothing is known.
        likeness: (experts, experts) cosines of their routers' logits on texts; without texts, of
            the routers' rows.
        is_measured: whether usage is known.

    >>> Asked(np.full(2, 0.5), np.eye(2), False).is_measured
    False
    """

    usage: np.ndarray
    likeness: np.ndarray
    is_measured: bool


class Group(NamedTuple):
    """Experts that become one.

    Attributes:
        dominant: that the others are brought in order with.
        members: all of them, the dominant one too, by number.

    >>> Group(3, (1, 3)).members
    (1, 3)
    """

    dominant: int
    members: tuple[int, ...]


def group(asked: Asked, count: int) -> list[Group]:
    """Part the experts of a layer into groups, by the numbers of the dominant ones.

    The dominant ones are those used most. Where usage is not known: the one most like all others,
    then one at a time that is least like those chosen.

    Args:
        asked: of the layer.
        count: of groups.

    >>> alike = np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]])
    >>> group(Asked(np.array([0.5, 0.4, 0.1]), alike, True), 2)
    [Group(dominant=0, members=(0, 2)), Group(dominant=1, members=(1,))]
    """
    if asked.is_measured:
        chosen = np.argsort(-asked.usage, kind="stable")[:count].tolist()
    else:
        chosen = [int(asked.likeness.sum(1).argmax())]
        while len(chosen) < count:
            nearest = asked.likeness[:, chosen].max(1)
            nearest[chosen] = np.inf
            chosen.append(int(nearest.argmin()))
    dominant = np.sort(chosen)
    joins = asked.likeness[:, dominant].argmax(1)
    joins[dominant] = np.arange(count)
    return [
        Group(int(expert), tuple(np.flatnonzero(joins == number).tolist()))
        for number, expert in enumerate(dominant)
    ]


def from_routers(routers: list[torch.Tensor]) -> list[Asked]:
    """Return how experts are asked, as far as routers alone tell: all as much.

    Args:
        routers: each layer's (experts, hidden) weight.

    >>> from_routers([torch.tensor([[1.0, 0.0], [2.0, 0.0]])])[0].likeness
    array([[1., 1.],
           [1., 1.]])
    """
    found = []
    for router in routers:
        experts = len(router)
        likeness = _cosines(router.double().numpy())
        found.append(Asked(np.full(experts, 1 / experts), likeness, False))
    return found


def from_texts(source: Source, file: Path, trust: Trust = NOBODY) -> list[Asked]:
    """Return how experts are asked while a mixture reads texts.

    Args:
        source: the mixture, which is loaded, in its own dtype (of float64, in float32).
        file: of texts.
        trust: what code of the model may run.

    Raises:
        BadInput: there are no texts, or the model has no tokenizer.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     from_texts(Source("a", Path(folder), {}, {}, {}), Path(folder, "texts.txt"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no file '...texts.txt'; write a path to a file of texts
    """
    from evomerge.merging.source_weights import SourceWeights

    texts = read_texts(file)
    dtype = "float32" if source.dtype == "float64" else source.dtype  # experts know no float64
    live = LiveModel(source, dtype, trust_remote_code=trust.remote_code)
    weights = SourceWeights({"": source}, torch.device("cpu"), room=0)
    live.load((name, weights.tensor("", name)) for name in source.tensors)
    per_token = int(live.model.config.num_experts_per_tok)
    logits: list[list[torch.Tensor]] = []  # by text, by layer: (tokens, experts)
    for ids in tokenized(live, texts):
        with torch.inference_mode():
            found = live.model(ids, output_router_logits=True).router_logits
        logits.append([layer.reshape(-1, layer.shape[-1]).double() for layer in found])
    if not logits:
        raise BadInput(Fault("", "holds no text of two tokens", "write longer ones", str(file)))
    return [_asked(torch.cat(layer), per_token) for layer in zip(*logits, strict=True)]


def _asked(logits: torch.Tensor, per_token: int) -> Asked:
    """Return how experts were asked by (tokens, experts) logits."""
    chosen = logits.topk(per_token, -1).indices
    counts = torch.bincount(chosen.flatten(), minlength=logits.shape[1]).double()
    usage = (counts / counts.sum()).numpy()
    return Asked(usage, _cosines(logits.T.numpy()), True)


def with_usage(asked: list[Asked], file: Path) -> list[Asked]:
    """Return how experts are asked with their usage from a file.

    Args:
        asked: of each layer.
        file: JSON, a list of one list for each layer, of one number for each expert.

    Raises:
        BadInput: it is not of that form.

    >>> with_usage([], Path("nowhere.json"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere.json: is no JSON of expert usage; write a list of 0 lists ...
    """
    experts = len(asked[0].usage) if asked else 0
    mend = f"write a list of {len(asked)} lists of {experts} numbers, none below 0"
    try:
        rows = np.array(parse_json(read_text(file, MOST_JSON)), dtype=np.float64)
    except (OSError, ValueError, TypeError):
        raise BadInput(Fault("", "is no JSON of expert usage", mend, str(file))) from None
    fits = rows.shape == (len(asked), experts) and np.isfinite(rows).all() and (rows >= 0).all()
    if not fits or (rows.sum(1) <= 0).any():
        raise BadInput(Fault("", "is not the usage of these experts", mend, str(file)))
    return [
        Asked(row / row.sum(), layer.likeness, True) for row, layer in zip(rows, asked, strict=True)
    ]


def _cosines(rows: np.ndarray) -> np.ndarray:
    """Return the cosines of (n, m) rows with one another."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    cosines: np.ndarray = unit @ unit.T
    return cosines
