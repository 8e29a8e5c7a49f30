"""The global generators of Python, numpy and torch: seeded as by lm-eval, and put back."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np

# What lm-eval's command line seeds them with, by default, before it loads a task.
_PYTHON_SEED, _OTHER_SEED = 0, 1234


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global generators back, on leaving, into the state in which they are now.

    >>> random.seed(5)
    >>> with generators_kept():
    ...     first = random.random()
    >>> first == random.random()
    True
    """
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    processor = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(processor)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


@contextlib.contextmanager
def seeded_as_lm_eval() -> Iterator[None]:
    """Seed the global generators as lm-eval's command line does, and put them back on leaving.

    Some tasks shuffle their documents or their choices by these generators, so unseeded they
    would have other items in every process.

    >>> with seeded_as_lm_eval():
    ...     first = random.random()
    >>> with seeded_as_lm_eval():
    ...     first == random.random()
    True
    """
    with generators_kept():
        random.seed(_PYTHON_SEED)
        np.random.seed(_OTHER_SEED)
        seed_torch(_OTHER_SEED)
        yield


def seed_torch(seed: int) -> None:
    """Seed torch's generators; `torch.manual_seed` takes a millisecond where CUDA is not begun.

    >>> import torch
    >>> with generators_kept():
    ...     seed_torch(3)
    ...     torch.initial_seed()
    3
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
