"""What the program for a GPU can merge, and how groups are parted for it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from evomerge.kernels.merge_plan import MaskedSums, MergePlan, Operands, Sums, WeightedSums
from evomerge.kernels.signs import Signs

DTYPES = {torch.bfloat16: 0, torch.float32: 1, torch.float16: 2}

THIN = {"magnitude": 1, "band": 1, "random": 2, "ranked": 3, "votes": 4}

SIGNED = 5  # among those of `THIN`: a weighted sum of a tensor and signs

_MOST = 39  # operands, whose dtypes are one number to the base of three: 3^39 < 2^63


def parted(operands: Operands, group: Sums) -> Iterator[Sums]:
    """Yield a group, in two parts if signs are among the operands of some of its tensors.

    >>> import numpy as np
    >>> some = Operands({"w": (torch.ones(1),), "v": (Signs.of(torch.ones(1), 1.0),)})
    >>> [part.names for part in parted(some, WeightedSums(("w", "v"), np.ones(1)))]
    [('w',), ('v',)]
    """
    if not isinstance(group, WeightedSums):
        yield group
        return
    for are_signed in (False, True):
        rows = [i for i, n in enumerate(group.names) if operands.has_signs(n) == are_signed]
        if rows:
            coefficients = group.coefficients
            of_rows = coefficients if coefficients.ndim == 1 else coefficients[rows]
            names = tuple(group.names[row] for row in rows)
            yield replace(group, names=names, coefficients=of_rows)


def has_form(plan: MergePlan, group: Sums, targets: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether there is a fused form of a group, which is one of `parted`.

    >>> import numpy as np
    >>> plan = MergePlan(Operands({"w": (torch.ones(1).double(),)}), torch.float32, ())
    >>> has_form(plan, WeightedSums(("w",), np.ones(1)), {"w": torch.zeros(1)})
    False
    """
    if isinstance(group, MaskedSums) and (group.masked.energy or group.masked.thin not in THIN):
        return False
    tensors = [targets[name] for name in group.names]
    dtypes = {tensor.dtype for tensor in tensors} | {plan.dtype}
    for name in group.names:
        operands = plan.operands.tensors[name]
        signs = [operand for operand in operands if isinstance(operand, Signs)]
        dense = [operand for operand in operands if not isinstance(operand, Signs)]
        if len(dense) > _MOST:
            return False
        if signs and (len(dense) != 1 or isinstance(operands[0], Signs)):
            return False
        if signs and not isinstance(group, WeightedSums):
            return False
        dtypes |= {operand.dtype for operand in operands}
        tensors += [*dense, *(one.codes for one in signs)]
    return dtypes <= DTYPES.keys() and all(tensor.is_contiguous() for tensor in tensors)
