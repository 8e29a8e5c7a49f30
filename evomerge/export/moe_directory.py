"""Dense experts of one architecture become one mixture of experts, as a Hugging Face directory.

Attention, norms and embeddings are the base's, each layer's experts are the models' MLPs, and
routers are made from prompts (Branch-Train-MiX without its last training, Sukhbaatar et al. 2024,
arXiv:2403.07816, by way of mergekit-moe's files).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from evomerge.dtypes import CODES
from evomerge.errors import BadInput, EvomergeError, Fault, Faults
from evomerge.export.model_card import short_card
from evomerge.export.model_directory import copy_companions, write_config
from evomerge.export.moe_families import FAMILIES, SILENT_WIDTH, Family, mlp_matrix
from evomerge.export.moe_form import MoeSection
from evomerge.export.moe_routers import random_routers, routers
from evomerge.export.shards import SHARD_BYTES, Entries, write_shards
from evomerge.kernels.checksum import Checksum
from evomerge.merging.live_model import LiveModel
from evomerge.merging.source_weights import SourceWeights
from evomerge.recipes.parameters import uniform
from evomerge.sections import parse
from evomerge.sources.architectures import effective
from evomerge.sources.compatibility import mismatches
from evomerge.sources.digest import digest
from evomerge.sources.source import Source, open_source
from evomerge.sources.trust import NOBODY, Trust
from evomerge.whole_files import written_beside

FILE = "mergekit_moe_config.yml"  # which mergekit-moe writes as well


class _Place(NamedTuple):
    """A tensor of the mixture: a source's, a layer's router, or nothing but zeros."""

    name: str
    shape: tuple[int, ...]
    source: str | None = None
    tensor: str = ""
    layer: int | None = None


def moe_to(data: Any, out: Path, *, shard_bytes: int = SHARD_BYTES, trust: Trust = NOBODY) -> str:
    """Write the mixture of experts that a file describes into a directory.

    Args:
        data: the YAML's content.
        out: a path that does not exist yet.
        shard_bytes: largest size of one safetensors file.
        trust: what code of the models may run.

    Returns:
        The weights' checksum.

    Raises:
        BadInput: the file, the models or `out` will not do.
        EvomergeError: the disk does not take them; nothing is left behind.

    >>> moe_to({"base_model": "a", "experts": []}, Path("out"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: experts: has fewer than 2 entries; write e.g. ...
    """
    section = parse(MoeSection, data)
    if out.exists():
        raise BadInput(Fault("", "is there already", "name a path that does not exist", str(out)))
    sources = _opened(section, trust)
    base = sources[section.base_model]
    family = _family(base)
    dtype = section.dtype or base.dtype
    weights = SourceWeights(sources, torch.device("cpu"), room=0)
    rows = _routers(section, base, weights)
    settings = family.config(
        effective(base.config), len(section.experts), section.experts_per_token
    )
    entries = _entries(section, base, family, CODES[dtype])
    checksum = Checksum()

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in _tensors(section, base, family, weights, rows):
            rounded = tensor.to(getattr(torch, dtype))
            checksum.update(name, rounded)
            yield name, rounded

    try:
        with written_beside(out) as folder:
            folder.mkdir()
            write_shards(entries, stream(), folder, shard_bytes)
            write_config({k: v for k, v in settings.items() if v is not None}, dtype, folder)
            copy_companions(base, folder)
            text = yaml.safe_dump(section.model_dump(exclude_none=True), sort_keys=False)
            (folder / FILE).write_text(text, encoding="utf-8")
            card = short_card(uniform(tuple(sources), dtype), made_from=FILE)
            (folder / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise EvomergeError(f"{out} cannot be written: {error.strerror or error}") from error
    return checksum.hexdigest()


def _opened(section: MoeSection, trust: Trust) -> dict[str, Source]:
    """Open the base and the experts, by name, and check them against one another."""
    faults, opened = Faults(), {}
    named = {section.base_model: "base_model"}
    for index, expert in enumerate(section.experts):
        named.setdefault(expert.source_model, f"experts.{index}.source_model")
    for name, key in named.items():
        with faults.gather(under=key):
            opened[name] = open_source(name, trust)
    faults.check()
    if len(opened) > 1:
        faults.extend(mismatches([*opened.values()]), under="experts")
    faults.check()
    for name, source in opened.items():
        if not_finite := digest(source)[1]:
            wrong = f"'{name}' has NaN or infinity in {not_finite[0]}"
            faults.add(named[name], wrong, "take another")
    faults.check()
    return opened


def _family(base: Source) -> Family:
    """Return the mixture's architecture; refuse models that have none, or have more than it."""
    kind = str(base.config.get("model_type"))
    if kind not in FAMILIES:
        wrong = f"models of type '{kind}' have no mixture of experts here"
        raise BadInput(Fault("base_model", wrong, f"take one of {', '.join(FAMILIES)}"))
    family = FAMILIES[kind]
    if family.model_type == "mixtral":
        biased = next((name for name in base.tensors if name.endswith("_proj.bias")), None)
        if biased is not None:
            wrong = f"{biased} has no place in a Mixtral"
            raise BadInput(Fault("base_model", wrong, "take models without biases"))
    return family


def _routers(section: MoeSection, base: Source, weights: SourceWeights) -> torch.Tensor:
    """Return the (layers, experts, hidden) float32 weights of the routers."""
    if section.gate_mode == "random":
        hidden = int(effective(base.config)["hidden_size"])
        return random_routers(section, base.layers, hidden)
    live = LiveModel(base, "float32")
    if live.tokenizer is None:
        wrong, mend = (
            f"'{base.name}' has no tokenizer to read prompts with",
            "write gate_mode: random",
        )
        raise BadInput(Fault("base_model", wrong, mend))
    live.load((name, weights.tensor(base.name, name).float()) for name in base.tensors)
    return routers(section, live.model, live.tokenizer)


def _layout(section: MoeSection, base: Source, family: Family) -> Iterator[_Place]:
    """Yield where each tensor of the mixture comes from, in the base's order."""
    hidden = int(effective(base.config)["hidden_size"])
    sizes = {"hidden": hidden, "width": SILENT_WIDTH, "one": 1}
    layer = -1
    for name, stored in base.tensors.items():
        at = mlp_matrix(name)
        if at is None:
            yield _Place(name, stored.shape, base.name, name)
            continue
        prefix, matrix = at
        if matrix == "gate_proj":  # once a layer
            layer += 1
            yield _Place(prefix + family.router, (len(section.experts), hidden), layer=layer)
            for silent, (rows, columns) in family.silent.items():
                yield _Place(prefix + silent, (sizes[rows], sizes[columns]))
        for number, expert in enumerate(section.experts):
            own = family.expert.format(expert=number, matrix=family.matrices[matrix])
            yield _Place(prefix + own, stored.shape, expert.source_model, name)


def _entries(section: MoeSection, base: Source, family: Family, code: str) -> Entries:
    return {place.name: (code, place.shape) for place in _layout(section, base, family)}


def _tensors(
    section: MoeSection,
    base: Source,
    family: Family,
    weights: SourceWeights,
    rows: torch.Tensor,
) -> Iterator[tuple[str, torch.Tensor]]:
    for place in _layout(section, base, family):
        if place.source is not None:
            yield place.name, weights.tensor(place.source, place.tensor)
        elif place.layer is not None:
            yield place.name, rows[place.layer]
        else:
            yield place.name, torch.zeros(place.shape)
