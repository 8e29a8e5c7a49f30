"""What learning takes of memory."""

from collections.abc import Mapping

KEPT_BYTES = 2 << 30  # of float32 task vectors; larger ones are read again in every step


def memory_bytes(tensors: Mapping[str, int], models: int) -> int:
    """Return about what a `LiveMerge` takes in float32, beside what a batch does.

    Args:
        tensors: name -> elements.
        models: how many are merged.

    >>> memory_bytes({"w": 10}, models=2)
    160
    """
    total = 4 * sum(tensors.values())
    kept = (models + 1) * total
    largest = 4 * (models + 1) * max(tensors.values(), default=0)
    return total + (kept if kept <= KEPT_BYTES else largest)
