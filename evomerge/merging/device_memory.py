"""How much of a GPU's memory a worker's sources may take."""

import torch

# Of a whole device, for batches' activations, caches of keys and values, and a merge's temporaries.
RESERVED = 0.25


def room_for_sources(device: str, asked: int | None = None, share: float = 1.0) -> int | None:
    """Return the bytes of sources' tensors that stay on a device; None for all of them.

    Args:
        device: of the worker; its live model is there already.
        asked: of a GPU, by the campaign file; None: what is free, less a quarter of the device.
        share: of the device that the worker has.

    >>> room_for_sources("cpu", asked=10**9) is None  # where they are mapped files, not copies
    True
    >>> room_for_sources("cuda", asked=10**9)
    1000000000
    """
    if not device.startswith("cuda"):
        return None
    if asked is not None:
        return asked
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(share * (free - RESERVED * total)))
