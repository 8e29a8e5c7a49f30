"""Units in another's order: the same function, and as near as any order brings the weights."""

import itertools
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import Linear, ReLU, Sequential
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.aligning.aligned_model import MODEL, align, open_pair, write_aligned
from evomerge.aligning.line import TextLoss, barrier, walk
from evomerge.aligning.matching import assignment, match
from evomerge.aligning.orders import Order, Orders
from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.sources.source import open_source
from evomerge.sources.trust import Trust
from evomerge.sources.units import NAMES, Slot, Units, decoder_units
from evomerge.testing import tiny_llama
from evomerge.testing.decoders import DECODERS, in_float64, tiny_decoder

IDS = torch.randint(3, 32, (2, 9), generator=torch.Generator().manual_seed(0))
FAMILIES = [name for name, (kind, _) in DECODERS.items() if kind in NAMES]
TRUSTED = Trust(True, True)


def logits(folder):
    model = in_float64(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))
    with torch.inference_mode():
        return model(IDS).logits


def shuffled(source, stream, seed):
    """Return random orders of a decoder's units, heads of queries within their groups."""
    units, generator = decoder_units(source, stream), np.random.default_rng(seed)
    orders = Orders(units)
    for index, unit in enumerate(units):
        outer = generator.permutation(unit.count)
        parts = [i * unit.inner + generator.permutation(unit.inner) for i in outer]
        orders[index] = Order(outer, np.concatenate(parts))
    return units, orders


def save_shuffled(folder, out, stream, seed):
    """Save a decoder with its units in random orders, by way of transformers itself."""
    source = open_source(str(folder))
    _, orders = shuffled(source, stream, seed)
    for file in folder.iterdir():
        out.mkdir(exist_ok=True)
        if file.suffix == ".json":
            (out / file.name).write_bytes(file.read_bytes())
    stored = load_file(folder / "model.safetensors")
    save_file(
        {n: orders.applied(n, t).contiguous() for n, t in stored.items()},
        out / "model.safetensors",
        {"format": "pt"},
    )
    return orders


# --- decoders --------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["layers", "stream"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_in_another_order_computes_the_same_and_is_put_in_order(name, stream, tmp_path):
    """Every unit is moved; the model says what it said; aligned, it is the first one to the bit."""
    folder = tiny_decoder(tmp_path / "a", name, 0)
    save_shuffled(folder, tmp_path / "b", stream, 1)
    wanted, moved = logits(folder), logits(tmp_path / "b")
    assert torch.allclose(moved, wanted, rtol=0, atol=1e-11) and wanted.std() > 0.1
    pair = open_pair(str(folder), str(tmp_path / "b"))
    alignment = align(pair, stream=stream)
    assert all(kind.after == pytest.approx(1.0) for kind in alignment.kinds.values())
    write_aligned(alignment, tmp_path / "out", {})
    first, found = (load_file(tmp_path / f / "model.safetensors") for f in ("a", "out"))
    assert first.keys() == found.keys()
    assert all(torch.equal(first[n], found[n]) for n in first)


@pytest.mark.parametrize("stream", [False, True], ids=["layers", "stream"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_aligned_stranger_computes_what_it_did(name, stream, tmp_path):
    folders = [str(tiny_decoder(tmp_path / str(seed), name, seed)) for seed in (0, 1)]
    alignment = align(open_pair(*folders), stream=stream)
    assert all(kind.after > kind.before for kind in alignment.kinds.values())
    write_aligned(alignment, tmp_path / "out", {})
    assert torch.allclose(logits(tmp_path / "out"), logits(folders[1]), rtol=0, atol=1e-11)
    before, after = (load_file(f"{f}/model.safetensors") for f in (folders[1], tmp_path / "out"))
    for key, tensor in before.items():  # the same numbers
        assert torch.equal(tensor.flatten().sort()[0], after[key].flatten().sort()[0])


def test_olmo2_norms_all_heads_at_once(tmp_path):
    shape = DECODERS["llama"][1] | {"num_key_value_heads": 2, "attention_bias": False}
    del shape["mlp_bias"]
    config = AutoConfig.for_model(
        "olmo2", vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, **shape,
    )  # fmt: skip
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(tmp_path / str(seed))
    alignment = align(open_pair(str(tmp_path / "0"), str(tmp_path / "1")), stream=True)
    write_aligned(alignment, tmp_path / "out", {})
    assert torch.allclose(logits(tmp_path / "out"), logits(tmp_path / "1"), rtol=0, atol=1e-11)


def grouped(folder, seed, dtype="float64"):
    """Save a Llama with three heads of keys and values, each for two of queries."""
    config = AutoConfig.for_model(
        "llama", vocab_size=32, hidden_size=24, intermediate_size=6, num_hidden_layers=1,
        num_attention_heads=6, num_key_value_heads=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def test_the_order_of_heads_and_neurons_is_the_best_of_all(tmp_path):
    """Against every one of 3! 2!^3 orders of heads, and every one of 6! of neurons, in float64."""
    folders = [grouped(tmp_path / str(seed), seed) for seed in (0, 1)]
    pair = open_pair(*map(str, folders))
    alignment = align(pair)
    one, other = (load_file(f / "model.safetensors") for f in folders)
    prefix = "model.layers.0."

    def value(orders):
        names = [n for n in one if n.startswith(prefix)]
        return sum(float((one[n] * orders.applied(n, other[n])).sum()) for n in names)

    found = value(alignment.orders)
    heads, neurons = [], []
    for outer in itertools.permutations(range(3)):
        for flips in itertools.product(((0, 1), (1, 0)), repeat=3):
            inner = [2 * o + f for o, flip in zip(outer, flips, strict=True) for f in flip]
            orders = Orders(alignment.units)
            orders[1] = alignment.orders[1]
            orders[0] = Order(np.array(outer), np.array(inner))
            heads.append(value(orders))
    for order in itertools.permutations(range(6)):
        orders = Orders(alignment.units)
        orders[0] = alignment.orders[0]
        orders[1] = Order(np.array(order), np.array(order))
        neurons.append(value(orders))
    assert found == pytest.approx(max(heads), abs=1e-9)
    assert found == pytest.approx(max(neurons), abs=1e-9)
    assert len(set(np.round(heads, 9))) == 48 and len(neurons) == 720


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_in_every_dtype_the_numbers_stay_the_same(dtype, tmp_path):
    folders = [tiny_llama(tmp_path / str(seed), seed, dtype=dtype) for seed in (0, 1)]
    write_aligned(align(open_pair(*map(str, folders)), stream=True), tmp_path / "out", {})
    before, after = (load_file(f / "model.safetensors") for f in (folders[1], tmp_path / "out"))
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor.flatten().sort()[0], after[name].flatten().sort()[0])


def test_the_seed_alone_decides(tmp_path):
    folders = [str(tiny_llama(tmp_path / str(seed), seed)) for seed in (0, 1)]
    pair = open_pair(*folders)
    twice = [align(pair, stream=True, seed=3) for _ in range(2)]
    for one, other in zip(*(a.orders for a in twice), strict=True):
        assert np.array_equal(one.inner, other.inner)


# --- the matching itself ---------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(0, 1000))
def test_an_assignment_is_the_best_of_all(count, seed):
    likeness = np.random.default_rng(seed).normal(size=(count, count))
    chosen = assignment(likeness)
    values = [
        sum(likeness[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(count))
    ]
    assert sorted(chosen) == list(range(count))
    assert likeness[np.arange(count), chosen].sum() == pytest.approx(max(values))


def perceptron(sizes, seed):
    """Return the weights of a perceptron and its units, the hidden layers' neurons."""
    torch.manual_seed(seed)
    weights, units = {}, []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weights[f"{number}.w"] = torch.randn(outputs, inputs, dtype=torch.float64)
        weights[f"{number}.b"] = torch.randn(outputs, dtype=torch.float64)
    for number, count in enumerate(sizes[1:-1]):
        slots = (Slot(f"{number}.w", 0), Slot(f"{number}.b", 0), Slot(f"{number + 1}.w", 1))
        units.append(Units(f"hidden {number}", "hidden", count, slots))
    return weights, units


@given(st.integers(0, 200), st.integers(2, 4))
def test_no_single_set_of_units_can_be_ordered_better(seed, depth):
    """Coordinate descent ends where each order is the best, the others held."""
    sizes = [3, *[4] * depth, 2]
    one, units = perceptron(sizes, seed)
    other, _ = perceptron(sizes, seed + 1000)
    orders = match(one.get, other.get, units, seed)

    def value(orders):
        return sum(float((one[n] * orders.applied(n, other[n])).sum()) for n in one)

    found = value(orders)
    assert found >= value(Orders(units)) - 1e-9
    for index in range(len(units)):
        kept = orders[index]
        for order in itertools.permutations(range(4)):
            orders[index] = Order(np.array(order), np.array(order))
            assert value(orders) <= found + 1e-4
        orders[index] = kept


def test_a_slot_in_the_middle_of_an_axis_leaves_the_rest():
    units = [Units("heads", "attention", 2, (Slot("qkv", 0, start=1, block=2, stride=3),))]
    orders = Orders(units)
    orders[0] = Order(np.array([1, 0]), np.array([1, 0]))
    assert orders.applied("qkv", torch.arange(8)).tolist() == [0, 4, 5, 3, 1, 2, 6, 7]


# --- modules that a function makes -----------------------------------------------------------

NET = """
from torch.nn import LayerNorm, Linear, Module, ReLU, Sequential


def plain():
    return Sequential(Linear(4, 6), ReLU(), Linear(6, 6), ReLU(), Linear(6, 3)).double()


def normed():
    return Sequential(Linear(4, 6), LayerNorm(6), ReLU(), Linear(6, 3)).double()


class Residual(Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Linear(4, 6), Linear(6, 6), Linear(6, 3)

    def forward(self, x):
        y = self.a(x).relu()
        return self.c(y + self.b(y).relu())


def residual():
    return Residual().double()


def single():
    return Linear(4, 3)


def strange():
    module = plain()
    module.forward = lambda x: x.nothing
    return module
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    return file


def test_a_perceptron_is_put_in_order(net, tmp_path):
    torch.manual_seed(1)
    made = Sequential(Linear(4, 6), ReLU(), Linear(6, 6), ReLU(), Linear(6, 3)).double()
    before = {n: t.clone() for n, t in made.state_dict().items()}
    save_file(before, tmp_path / "b.safetensors")
    torch.manual_seed(0)
    reference = {n: torch.randn_like(t) for n, t in before.items()}
    save_file(reference, tmp_path / "a.safetensors")
    names = [f"{net}:plain@{tmp_path}/{n}.safetensors" for n in "ab"]
    alignment = align(open_pair(*names, TRUSTED))
    assert alignment.kinds["hidden"].sets == 2
    write_aligned(alignment, tmp_path / "out.safetensors", {})
    after = load_file(tmp_path / "out.safetensors")
    rows = torch.randn(5, 4, dtype=torch.float64)
    wanted = made(rows)
    made.load_state_dict(after)
    assert torch.allclose(made(rows), wanted, atol=1e-12)
    assert not torch.equal(after["0.weight"], before["0.weight"])
    open_source(f"{net}:plain@{tmp_path}/out.safetensors", TRUSTED)


def test_what_is_bound_together_is_left_as_it_is(net):
    """A stream that a layer adds to is in more than two matrices: no pair of them may be moved."""
    normed = align(open_pair(f"{net}:normed@1", f"{net}:normed@2", TRUSTED))
    (unit,) = normed.units
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight"]
    assert [slot.tensor for slot in unit.slots] == names
    with pytest.raises(BadInput, match="no hidden units were found"):
        align(open_pair(f"{net}:residual@1", f"{net}:residual@2", TRUSTED))
    with pytest.raises(BadInput, match="no hidden units were found"):
        align(open_pair(f"{net}:single@1", f"{net}:single@2", TRUSTED))
    with pytest.raises(BadInput, match="was run on a random"):
        align(open_pair(f"{net}:strange@1", f"{net}:strange@2", TRUSTED))


# --- the line between two models -------------------------------------------------------------


def test_a_barrier_is_measured_from_the_straight_line():
    at = [0.0, 0.25, 0.5, 1.0]
    assert barrier(at, [1.0, 2.0, 4.0, 3.0], True) == pytest.approx(2.0)  # 4 - (1 + 3) / 2
    assert barrier(at, [0.9, 0.8, 0.5, 0.7], False) == pytest.approx(0.3)  # (.9 + .7) / 2 - .5
    assert barrier(at, [1.0, 1.0, 1.0, 3.0], True) == 0.0


def test_the_loss_along_a_line_is_that_of_the_averaged_weights(tmp_path):
    folders = [str(tiny_llama(tmp_path / str(s), s, dtype="float32")) for s in (0, 1)]
    (tmp_path / "texts.txt").write_text("w1 w2 w3 w4\n\nw5\nw9 w8\n")
    pair = open_pair(*folders)
    line = walk(
        pair, lambda n: pair.weights.tensor(MODEL, n), TextLoss(tmp_path / "texts.txt"), points=3
    )
    one, other = (AutoModelForCausalLM.from_pretrained(f) for f in folders)
    middle = AutoModelForCausalLM.from_pretrained(folders[0])
    with torch.no_grad():
        parts = zip(middle.parameters(), one.parameters(), other.parameters(), strict=True)
        for mean, a, b in parts:
            mean.copy_((a + b) / 2)
    for value, model in zip(line.values, (one, middle, other), strict=True):
        losses = []
        for text in ([5, 6, 7, 8], [13, 12]):
            ids = torch.tensor([text])
            chances = model(ids).logits[0, :-1].detach().log_softmax(-1)
            losses += [-float(chances[i, token]) for i, token in enumerate(text[1:])]
        assert value == pytest.approx(np.mean(losses), abs=1e-5)


# --- the command -----------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(main, ["align", *map(str, words)])


def test_the_command_writes_a_model_and_says_what_it_did(tmp_path):
    a, b = (tiny_llama(tmp_path / s, n) for n, s in enumerate("ab"))
    (tmp_path / "texts.txt").write_text("w1 w2 w3\n")
    done = run(a, b, tmp_path / "out", "--texts", tmp_path / "texts.txt", "--stream", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert set(found["units"]) == {"mlp", "attention", "stream"}
    before, after = found["line"]["before"]["values"], found["line"]["after"]["values"]
    assert len(before) == 11 and before[0] == after[0]
    assert before[-1] == pytest.approx(after[-1], abs=1e-3)  # one model, in bfloat16
    assert json.loads((tmp_path / "out/made_by.json").read_text())["reference"] == str(a)
    assert (tmp_path / "out/tokenizer.json").is_file()
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text()
    text = run(a, b, tmp_path / "again", "--fitness", tmp_path / "fit.py").output
    assert "there is no file" in text and not (tmp_path / "again").exists()
    text = run(a, b, tmp_path / "again").output
    assert "cosine before" in text and "attention" in text


def test_faults_are_lines(tmp_path, net):
    a = tiny_llama(tmp_path / "a", 0)
    wider = tiny_llama(tmp_path / "wider", 1, hidden=32)
    mixtral = tiny_decoder(tmp_path / "mixtral", "mixtral", 0)
    other = tiny_decoder(tmp_path / "mixtral2", "mixtral", 1)
    nan = tiny_llama(tmp_path / "nan", 1)
    stored = load_file(nan / "model.safetensors")
    stored["model.norm.weight"][0] = float("nan")
    save_file(stored, nan / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    cases = [
        ((a, wider, out), "wider"),
        ((a, a, out), "are one model"),
        ((a, tmp_path / "gone", out), "there is no directory"),
        ((a, nan, out), "has NaN or infinity in model.norm.weight"),
        ((mixtral, other, out), "models of type 'mixtral' are not known here"),
        ((a, tiny_llama(tmp_path / "b", 1), a), "is there already"),
        ((f"{net}:plain@1", f"{net}:plain@2", out), "would run a Python function"),
        ((f"{net}:plain@1", f"{net}:plain@2", out, "--trust-code"), "name a .safetensors file"),
        ((a, tmp_path / "b", out, "--texts", tmp_path / "no.txt"), "there is no file"),
        ((a, tmp_path / "b", out, "--texts", "x", "--fitness", "y"), "is given beside --texts"),
    ]
    for words, told in cases:
        done = run(*words)
        assert done.exit_code == 2 and told in done.output, (words, done.output)
        assert not out.exists() and "Traceback" not in done.output
    words = (f"{net}:plain@1", f"{net}:plain@2", tmp_path / "x.safetensors", "--stream")
    done = run(*words, "--trust-code")
    assert done.exit_code == 2 and "has no residual stream" in done.output
