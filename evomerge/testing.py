"""What anyone needs to test a merge method, a space or a controller: tiny real models, and
the laws that every one of them must pass, ours and yours.

    from evomerge.testing import controller_laws
    for law in controller_laws: law("my_controller")
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.controllers import CONTROLLERS, Told
from evomerge.operators import OPERATORS
from evomerge.recipe import Group, Recipe

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(28)))


def tiny_tokenizer(words: Sequence[str] = WORDS):
    """Return a word-level fast tokenizer over `words`, whose first four are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def tiny_llama(
    directory: Path | str,
    seed: int,
    *,
    near: Path | str | None = None,
    spread: float = 0.02,
    dtype: str = "bfloat16",
    layers: int = 2,
    hidden: int = 16,
    tie: bool = True,
    words: Sequence[str] = WORDS,
) -> Path:
    """Save a Llama of some 5,000 random parameters, with its tokenizer; return its directory.

    Args:
        directory: where to save it.
        seed: of the weights.
        near: a directory of a model of the same shape; the weights are then its own plus
            normal noise of standard deviation `spread`, as of a fine-tune.
        spread: see `near`.
        dtype, layers, hidden, tie, words: of the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(seed)
    if near is None:
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=tie,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = LlamaForCausalLM(config)
        base = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        spread = 0.3
    else:
        model = AutoModelForCausalLM.from_pretrained(near, dtype=torch.float32)
        base = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(base[name] + noise + (1.0 if near is None and "norm" in name else 0.0))
    model.to(kind).save_pretrained(directory)
    tiny_tokenizer(words).save_pretrained(directory)
    return Path(directory)


# --- laws of controllers ---------------------------------------------------------------


def sphere(genome: np.ndarray) -> float:
    """Return minus the squared distance to a point off the centre: more is better."""
    return -float(((genome - 0.3) ** 2).sum())


def drive(
    name: str,
    evaluations: int,
    *,
    dimension: int = 5,
    seed: int = 1,
    workers: int = 1,
    score: Callable[[np.ndarray], float | None] = sphere,
    order_seed: int = 0,
) -> tuple[np.ndarray, list[float | None]]:
    """Run a controller on a function with `workers` candidates in flight, told in any order.

    Returns:
        The (evaluations, dimension) genomes proposed, and their values (None: failures).
    """
    controller = CONTROLLERS.get(name)(
        dimension=dimension, seed=seed, start=np.full(dimension, 0.5)
    )
    controller.tell(Told(None, None, 0.0, (0.0,)))  # a baseline, before the first ask
    order = np.random.default_rng(order_seed)
    flying: list[tuple[int, np.ndarray]] = []
    genomes: list[np.ndarray] = []
    values: list[float | None] = []
    while len(genomes) < evaluations or flying:
        wanted = min(workers - len(flying), evaluations - len(genomes))
        asked = controller.ask(wanted) if wanted > 0 else []
        assert len(asked) <= max(wanted, 0), "proposed more than it was asked for"
        assert asked or flying, "proposed nothing while nothing is outstanding"
        for genome in asked:
            flying.append((len(genomes), genome))
            genomes.append(genome)
            values.append(score(genome))
        if flying and (len(flying) >= workers or not asked):
            ordinal, genome = flying.pop(order.integers(len(flying)))
            value = values[ordinal]
            objectives = None if value is None else (value,)
            controller.tell(Told(ordinal, genome, value, objectives))
    return np.array(genomes), values


def law_stays_within_bounds(name: str) -> None:
    """Proposes (dimension,) float64 genomes within [0, 1], whatever it is told."""
    for score in (sphere, lambda g: -sphere(g), lambda g: 1.0, lambda g: None):
        genomes, _ = drive(name, 120, workers=3, score=score)
        assert genomes.shape == (120, 5) and genomes.dtype == np.float64
        assert np.isfinite(genomes).all() and genomes.min() >= 0.0 and genomes.max() <= 1.0


def law_improves_on_a_sphere(name: str) -> None:
    """Its best of 300 is better than its best of the first 20, in flight or not, with failures."""
    for workers in (1, 7):
        _, values = drive(
            name,
            300,
            workers=workers,
            score=lambda g: None if int(g[0] * 1e6) % 13 == 0 else sphere(g),
        )
        known = [-np.inf if v is None else v for v in values]
        assert max(known) > max(known[:20])


def law_is_a_function_of_its_calls(name: str) -> None:
    """The same seed and calls propose the same genomes; another seed does not."""
    first, _ = drive(name, 80, workers=4)
    again, _ = drive(name, 80, workers=4)
    other, _ = drive(name, 80, workers=4, seed=2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def law_leaves_global_generators_alone(name: str) -> None:
    """Neither reads nor moves numpy's global generator."""
    np.random.seed(5)
    first, _ = drive(name, 60)
    state = np.random.get_state()[1].copy()
    np.random.seed(6)
    again, _ = drive(name, 60)
    np.random.seed(5)
    assert np.array_equal(first, again)
    assert np.array_equal(np.random.get_state()[1], state)


def law_replays_in_another_process(name: str) -> None:
    """A fresh process with another hash seed proposes the same genomes, to the last bit."""
    code = (
        "import sys, json; from evomerge.testing import drive;"
        f"print(json.dumps([g.hex() for g in drive({name!r}, 60, workers=3)[0].ravel()]))"
    )
    here, _ = drive(name, 60, workers=3)
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout) == [g.hex() for g in here.ravel()]


controller_laws = (
    law_stays_within_bounds,
    law_improves_on_a_sphere,
    law_is_a_function_of_its_calls,
    law_leaves_global_generators_alone,
    law_replays_in_another_process,
)


# --- laws of merge methods ---------------------------------------------------------------


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

    from evomerge.merge import Merger
    from evomerge.sources import open_source

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
