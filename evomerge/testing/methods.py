"""The laws that every merge method passes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.merging.methods import OPERATORS
from evomerge.recipes.parameters import Group, Recipe


def recipe_of(
    name: str,
    models: Sequence[str],
    base: str,
    *,
    based: bool = True,
    seed: int = 11,
    options: dict | None = None,
    **values: float | tuple,
) -> Recipe:
    """Return a one-group recipe of a method; axes not given take their default, or a half.

    `based` false leaves out a base that the method takes but does not need.
    """
    operator = OPERATORS.get(name)
    models = tuple(models)[: operator.models] if operator.models else tuple(models)
    filled: dict = {}
    for p in operator.parameters:
        value = values.get(p.name, 0.5 if p.default is None else p.default)
        if p.axis.per_model and not isinstance(value, tuple):
            value = (float(value),) * len(models)
        filled[p.name] = value
    return Recipe(
        name,
        models,
        (Group(None, None, filled),),
        base if operator.needs_base or (based and operator.takes_base) else None,
        "float32",
        seed if operator.draws else None,
        options or {},
    )


def merge_arrays(
    name: str, base: np.ndarray, models: Sequence[np.ndarray], **values: Any
) -> np.ndarray:
    """Merge single float32 arrays through the real engine; return the float32 result.

    Args:
        name: of the method.
        base, models: arrays of one shape.
        values: as `recipe_of` takes them.
    """
    import tempfile

    import torch
    from safetensors.torch import save_file

    from evomerge.merging.merger import Merger
    from evomerge.sources.source import open_source

    with tempfile.TemporaryDirectory() as folder:
        names, hashes = [], {}
        for i, array in enumerate([base, *models]):
            path = Path(folder) / str(i)
            path.mkdir()
            tensor = torch.from_numpy(np.array(array, np.float32, order="C"))
            save_file({"model.layers.0.w.weight": tensor}, path / "model.safetensors")
            (path / "config.json").write_text('{"model_type": "test"}')
            names.append(str(path))
            hashes[str(path)] = f"{i} {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}"
        opened = {n: open_source(n) for n in names}
        recipe = recipe_of(name, names[1:], names[0], **values)
        ((_, merged),) = Merger(opened, hashes).stream(recipe)
        return merged.numpy().copy()


def _some_arrays(shape: tuple[int, ...], count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return [base] + [base + rng.normal(size=shape).astype(np.float32) * 0.1 for _ in range(count)]


def law_keeps_shape_and_inputs(name: str) -> None:
    """Gives a finite tensor of the same shape, for 0-d, 1-element and odd shapes; inputs stay."""
    count = OPERATORS.get(name).models or 3
    for shape in ((), (1,), (64,), (7, 13), (2, 3, 5)):
        base, *models = _some_arrays(shape, count)
        before = [a.copy() for a in (base, *models)]
        merged = merge_arrays(name, base, models)
        assert merged.shape == shape and np.isfinite(merged).all()
        assert all(map(np.array_equal, before, (base, *models)))


def law_merging_equals_is_identity(name: str) -> None:
    """Merging copies of one model, the base too, gives that model (weights summing to one)."""
    count = OPERATORS.get(name).models or 3
    base = _some_arrays((8, 9), 1)[0]
    merged = merge_arrays(name, base, [base] * count, weight=(1.0 / count,) * count)
    assert np.allclose(merged, base, atol=1e-6)


def law_one_hot_gives_the_model(name: str) -> None:
    """Weight one on one model, none on the rest, all kept, gives that model; not if prepared."""
    operator = OPERATORS.get(name)
    if "weight" not in operator.parameter or operator.prepare:
        return
    base, *models = _some_arrays((6, 7), 3)
    count = operator.models or 3
    weight = tuple(float(i == 1) for i in range(count))
    kept = {"density": 1.0, "gamma": 0.0, "threshold": 0.0, "least": 1.0, "scale": 1.0}
    merged = merge_arrays(name, base, models[:count], weight=weight, **kept)
    assert np.allclose(merged, models[1], atol=1e-6)


def law_order_of_models_does_not_matter(name: str) -> None:
    """Permuting models with their values leaves the merge the same, up to rounding."""
    operator = OPERATORS.get(name)
    if operator.models:
        return
    base, *models = _some_arrays((6, 7), 3)
    weight = (0.2, 0.5, 0.9)
    merged = merge_arrays(name, base, models, weight=weight)
    other = merge_arrays(name, base, models[::-1], weight=weight[::-1])
    assert np.allclose(merged, other, atol=1e-5)


operator_laws = (
    law_keeps_shape_and_inputs,
    law_merging_equals_is_identity,
    law_one_hot_gives_the_model,
    law_order_of_models_does_not_matter,
)
