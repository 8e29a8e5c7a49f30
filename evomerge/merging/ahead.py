"""Reading on while what was read is worked on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def ahead(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Yield items of which each is made on a GPU while the one before is used.

    The next item is made in a thread, on a stream of its own; the current stream waits for it
    before it is yielded. Whoever uses an item ends that work before the next is asked for: memory
    of an item that is dropped is given to those that come. Off a GPU one comes after the other,
    as a processor's threads are all at work anyway.

    Args:
        items: make tensors on `device` when they are asked for.
        device: where.

    >>> list(ahead(iter([1, 2]), torch.device("cpu")))
    [1, 2]
    """
    if device.type != "cuda":
        yield from items
        return
    stream = torch.cuda.Stream(device)
    end = object()

    def make() -> tuple[T | object, torch.cuda.Event]:
        with torch.inference_mode(), torch.cuda.stream(stream):
            item = next(items, end)
            return item, stream.record_event()

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(make)
        while True:
            item, made = future.result()
            if item is end:
                return
            torch.cuda.current_stream(device).wait_event(made)
            future = thread.submit(make)
            yield item  # type: ignore[misc]
