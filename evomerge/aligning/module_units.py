"""The hidden units of a module that a function made: proposed by shapes, kept if they prove so.

Nothing says which axes of such a module's tensors belong together. In a perceptron a matrix's
outputs are the next one's inputs, with vectors of the same length (biases, norms) between them.
Each such set is put into a random order, and is kept if what the module computes does not change.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from evomerge.aligning.orders import Order, Orders
from evomerge.errors import BadInput, Fault, one_line
from evomerge.sources.factory import build, state_of
from evomerge.sources.source import Source
from evomerge.sources.units import Slot, Units

_INPUTS = 8  # random rows that a module is tried on

_ROUNDING = 1e-9  # of outputs in float64, as a share of the largest


def module_units(source: Source, weights: Mapping[str, torch.Tensor]) -> list[Units]:
    """Return a perceptron's hidden units, layer by layer.

    Args:
        source: with a factory, whose function has been trusted.
        weights: its tensors.

    Raises:
        BadInput: the module takes no (rows, inputs) matrix, or no hidden units were found.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.sources.trust import Trust
    >>> code = '''
    ... from torch.nn import Linear, ReLU, Sequential
    ... def net():
    ...     return Sequential(Linear(3, 5), ReLU(), Linear(5, 5), ReLU(), Linear(5, 2))
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "net.py").write_text(code)
    ...     source = open_source(f"{folder}/net.py:net@1", Trust(True, True))
    ...     weights = build(source.factory).state_dict()
    ...     for unit in module_units(source, weights):
    ...         print(unit.name, unit.count, [slot[:2] for slot in unit.slots])
    hidden 1 5 [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
    hidden 2 5 [('2.weight', 0), ('2.bias', 0), ('4.weight', 1)]
    """
    assert source.factory is not None, "only a module that a function made is tried"
    module = build(source.factory).double().eval()
    wide = {n: t.double() if t.is_floating_point() else t for n, t in weights.items()}
    names = [name for name in state_of(module) if name in wide]
    matrices = [name for name in names if wide[name].dim() == 2]
    found: list[Units] = []
    for outputs in (0, 1):  # as torch's Linear has them, and as x @ M does
        if len(matrices) < 2:
            break
        proposed = list(_proposed(names, wide, outputs))
        inputs = wide[matrices[0]].shape[1 - outputs]
        proven = [unit for unit in proposed if _is_free(source, module, wide, unit, inputs)]
        if len(proven) > len(found):
            found = proven
    if not found:
        wrong = f"'{source.name}': no hidden units were found that may stand in another order"
        raise BadInput(Fault("", wrong, "take a perceptron, or a decoder of transformers"))
    return [
        Units(f"hidden {number}", "hidden", unit.count, unit.slots)
        for number, unit in enumerate(found, start=1)
    ]


def _proposed(
    names: list[str], weights: Mapping[str, torch.Tensor], outputs: int
) -> Iterator[Units]:
    """Yield each matrix's outputs with the vectors after it and the next matrix's inputs.

    Args:
        names: of the tensors, in the module's order.
        weights: by name.
        outputs: the axis along which matrices have them.
    """
    matrices = [index for index, name in enumerate(names) if weights[name].dim() == 2]
    for one, other in itertools.pairwise(matrices):
        count = weights[names[one]].shape[outputs]
        if weights[names[other]].shape[1 - outputs] != count:
            continue
        between = [n for n in names[one + 1 : other] if weights[n].shape == (count,)]
        slots = [Slot(names[one], outputs), *(Slot(n, 0) for n in between)]
        yield Units("hidden", "hidden", count, (*slots, Slot(names[other], 1 - outputs)))


def _is_free(
    source: Source,
    module: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    unit: Units,
    inputs: int,
) -> bool:
    """Tell whether a module computes the same with some units in a random order.

    And whether it does not if they change places in their first slot alone: else nothing is shown.
    """
    generator = torch.Generator().manual_seed(unit.count)
    rows = torch.randn(_INPUTS, inputs, generator=generator, dtype=torch.float64)
    chosen = np.random.default_rng(unit.count).permutation(unit.count)
    if unit.count < 2 or (chosen == np.arange(unit.count)).all():
        chosen = np.roll(np.arange(unit.count), 1)
    orders, half = Orders([unit]), Orders([Units("", "", unit.count, unit.slots[:1])])
    orders[0] = half[0] = Order(chosen, chosen)
    found = []
    for changed in (None, orders, half):
        state = {n: changed.applied(n, t) if changed else t for n, t in weights.items()}
        try:
            module.load_state_dict(state)
            with torch.no_grad():
                found.append(torch.as_tensor(module(rows)))
        except Exception as error:  # the user's code: whatever it raises means the same
            wrong = f"'{source.name}' was run on a random ({_INPUTS}, {inputs}) matrix, and failed"
            mend = f"({one_line(error)}); only perceptrons are aligned"
            raise BadInput(Fault("", f"{wrong} {mend}", "take another")) from error
    wanted, whole, broken = found
    allowed = _ROUNDING * float(wanted.abs().max())
    same = float((whole - wanted).abs().max()) <= allowed
    return same and float((broken - wanted).abs().max()) > allowed
