"""Merges of LoRA adapters of one base that are one adapter of it: their weighted sums above all.

W + sum_k c_k s_k B_k A_k = W + [c_1 s_1 B_1, c_2 s_2 B_2, ...] [A_1; A_2; ...]: the factors are
joined, and the rank is the ranks' sum (arXiv:2106.09685 has the form of one; PEFT joins several so
in `add_weighted_adapter`, combination_type="cat"). Merges within factors are factors as they are.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, CandidateFailure, Fault
from evomerge.kernels.checksum import Checksum
from evomerge.merging.adapters import unfit_adapter
from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.sources.lora import LowRank
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source

_MEND = "take a recipe of task_arithmetic or linear over adapters of one base"

_ADDING = ("linear", "factored")  # families of methods whose merges of adapters are adapters


class JoinedFactors(NamedTuple):
    """What a joined adapter adds to one weight: B A, its scale within.

    Attributes:
        module: of the weight, as PEFT calls it.
        a: (rank, in).
        b: (out, rank).
        is_embedding: whether the weight is one of embeddings.
        transposed: whether it is a layer's, and (in, out), as GPT-2's are.

    >>> JoinedFactors("lm_head", torch.zeros(2, 3), torch.zeros(5, 2), False, False).rank
    2
    """

    module: str
    a: torch.Tensor
    b: torch.Tensor
    is_embedding: bool
    transposed: bool

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return len(self.a)


class JoinedAdapter(NamedTuple):
    """An adapter that is a merge of others.

    Attributes:
        base: the model that it is one of, whatever adapter the source of this name has.
        factors: tensor name -> what it adds there; none for the base as it is.

    >>> base = Source("base", Path("base"), {}, {}, {})
    >>> pair = JoinedFactors("lm_head", torch.zeros(2, 3), torch.zeros(5, 2), False, False)
    >>> adapter = JoinedAdapter(base, {"lm_head.weight": pair})
    >>> sorted(name for name, _ in adapter.tensors())
    ['base_model.model.lm_head.lora_A.weight', 'base_model.model.lm_head.lora_B.weight']
    >>> config = adapter.config("org/base")
    >>> config["r"], config["lora_alpha"], config["target_modules"]
    (2, 2, ['lm_head'])
    """

    base: Source
    factors: dict[str, JoinedFactors]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, factor) as PEFT stores them."""
        for pair in self.factors.values():
            a, b = "lora_A.weight", "lora_B.weight"
            if pair.is_embedding:
                a, b = "lora_embedding_A", "lora_embedding_B"
            yield f"base_model.model.{pair.module}.{a}", pair.a
            yield f"base_model.model.{pair.module}.{b}", pair.b

    def checksum(self) -> str:
        """Return the checksum of the factors, 32 hex digits."""
        checksum = Checksum()
        for name, tensor in self.tensors():
            checksum.update(name, tensor)
        return checksum.hexdigest()

    def config(self, base: str, revision: str | None = None) -> dict[str, Any]:
        """Return what PEFT wants in adapter_config.json.

        lora_alpha is r in every module, so that PEFT's scale is 1.

        Args:
            base: a directory or hub id.
            revision: of the hub's.

        Raises:
            BadInput: it adds nothing to its base, and PEFT knows no such adapter.
        """
        if not self.factors:
            raise _refused("models", "the merge is the base as it is, and adds nothing to it")
        modules = [pair.module for pair in self.factors.values()]
        rank = Counter(pair.rank for pair in self.factors.values()).most_common(1)[0][0]
        # names are regular expressions here; a dot stands for itself as well
        others = {pair.module: pair.rank for pair in self.factors.values() if pair.rank != rank}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if "CausalLM" in self.base.class_name else None,
            "base_model_name_or_path": base,
            "revision": revision,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": modules,
            "fan_in_fan_out": any(pair.transposed for pair in self.factors.values()),
            "bias": "none",
            "init_lora_weights": True,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "use_dora": False,
            "use_rslora": False,
        }

    def save(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Write the adapter in PEFT's format into a folder.

        Args:
            folder: that exists.
            base, revision: see `config`.

        Raises:
            BadInput: see `config`.
        """
        from safetensors.torch import save_file

        config = json.dumps(self.config(base, revision), indent=2)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(config + "\n")


def empty_adapter(base: Source, others: Sequence[Source]) -> JoinedAdapter:
    """Return an adapter that adds zeros to its base: in one weight, with rank 1.

    Args:
        base: a source.
        others: its adapters, one at least.

    >>> empty_adapter(Source("base", Path("base"), {}, {}, {}), ()).factors
    {}
    """
    for source in others:
        for name, pair in source.adapter.factors.items() if source.adapter else ():
            a, b = torch.zeros(1, pair.a.shape[1]), torch.zeros(pair.b.shape[0], 1)
            zeros = JoinedFactors(pair.module, a, b, pair.is_embedding, False)
            return JoinedAdapter(base, {name: zeros})
    return JoinedAdapter(base, {})


def join_adapters(merger: Merger, recipe: Recipe) -> JoinedAdapter:
    """Return the adapter that a recipe's merge is, of the model below its first source.

    Args:
        merger: over the recipe's sources.
        recipe: whose methods are weighted sums in which the base's weight is 1, or merge adapters
            within their factors.

    Raises:
        BadInput: the merge is no adapter of that model; with the reason.
        CandidateFailure: a factor is not finite, or no group holds a tensor.

    >>> from evomerge.recipes.parameters import Group
    >>> source = Source("a", Path("a"), {}, {}, {})
    >>> group = Group(None, None, {"weight": (1.0,), "density": (0.5,)})
    >>> recipe = ParametersRecipe("ties", ("a",), (group,), base="a", dtype="float32")
    >>> join_adapters(Merger({"a": source}, {"a": ""}), recipe)
    Traceback (most recent call last):
    evomerge.errors.BadInput: method: ties makes no weighted sum of its models, which an adapter \
is; take a recipe of task_arithmetic or linear over adapters of one base
    """
    if not isinstance(recipe, ParametersRecipe):
        raise _refused("kind", f"a recipe of kind {recipe.kind} is no weighted sum of adapters")
    for method in recipe.methods:
        if METHODS.get(method).family not in _ADDING:
            wrong = f"{method} makes no weighted sum of its models, which an adapter is"
            raise _refused("method", wrong)
    frame = merger.sources[recipe.sources[0]]
    for name in recipe.sources:
        unfit = unfit_adapter(merger.sources[name], frame)
        if unfit is not None:
            raise _refused("models", unfit)
    factors = {}
    merge = merger.resolved(recipe)
    for name in frame.tensors:
        if merge.is_composed(name):
            made = merge.composed(name)
            if made is not None:
                factors[name] = _pair(name, made.update.right, made.update.left, made.like)
            continue
        sources, coefficients = merge.weighted(name)
        stored, updates = merger.weights.terms(sources, name, coefficients)
        ((tensor, weight),) = stored  # the one base's
        if np.float32(weight) != 1.0:  # as the kernels have it
            wrong = f"the models' weights sum to {weight:g} in {name}, which scales the base too"
            raise _refused("groups", wrong)
        if updates:
            factors[name] = _joined(merger, name, tensor, updates)
    return JoinedAdapter(frame, factors)


def adapter_faults(recipe: Recipe, sources: Sequence[Source]) -> Iterator[Fault]:
    """Yield why merges like a recipe over sources are no adapters of one base, by headers alone.

    Args:
        recipe: one of a space's.
        sources: all of them, the first its frame.

    >>> from evomerge.recipes.parameters import uniform
    >>> sources = [Source(name, Path(name), {}, {}, {}) for name in "ab"]
    >>> for fault in adapter_faults(uniform(("a", "b"), "float32"), sources):
    ...     print(fault)
    'b' is no LoRA adapter of 'a'
    none of the models has an adapter
    """
    if not isinstance(recipe, ParametersRecipe):
        yield Fault("", f"a recipe of kind {recipe.kind} is no weighted sum of adapters")
        return
    for name in recipe.methods:
        method = METHODS.get(name)
        is_normal = recipe.options.get("normalize", method.options.get("normalize", False))
        has_base = method.takes_base and recipe.base is not None
        if method.family not in _ADDING:
            yield Fault("", f"{name} makes no weighted sum of its models, which an adapter is")
        elif method.family == "linear" and not has_base and not is_normal:
            yield Fault("", f"weights of {name} need not sum to 1, and scale the base as well")
    for source in sources:
        wrong = unfit_adapter(source, sources[0])
        if wrong is not None:
            yield Fault("", wrong)
    if not any(source.adapter for source in sources):
        yield Fault("", "none of the models has an adapter")


def _refused(key: str, wrong: str) -> BadInput:
    return BadInput(Fault(key, wrong, _MEND))


def _joined(
    merger: Merger, name: str, stored: Tensor, updates: Sequence[tuple[LowRank, float]]
) -> JoinedFactors:
    """Return the joined factors of one weight, scaled as they are where the weight is merged."""
    dtype = torch.promote_types(getattr(torch, STORED_DTYPES[stored.dtype]), torch.float32)
    left, right = merger.weights.joined_factors(updates, dtype)
    first = updates[0][0]
    a, b = (left.T, right.T) if first.transposed else (right, left)
    return _pair(name, a, b, first)


def _pair(name: str, a: torch.Tensor, b: torch.Tensor, like: LowRank) -> JoinedFactors:
    """Return finite factors of a weight's update, whose module is that of one of the models'."""
    if not (a.isfinite().all() and b.isfinite().all()):
        raise CandidateFailure(f"a factor of the update of {name} is not finite")
    is_layer = like.transposed and not like.is_embedding
    return JoinedFactors(like.module, a.contiguous(), b.contiguous(), like.is_embedding, is_layer)
