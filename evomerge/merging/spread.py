"""A model of transformers that is larger than one GPU: its layers lie on several, in their order.

accelerate moves what passes from one GPU to the next.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def placement(model: "PreTrainedModel", gpus: int) -> dict[str, int]:
    """Return part of a model -> number of its GPU, so that each holds about as many bytes.

    Decoder layers are not divided, and parts that share a tensor lie together.

    Args:
        model: of any device, "meta" too.
        gpus: how many there are.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 8}
    >>> with torch.device("meta"):
    ...     model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes))
    >>> found = placement(model, 2)
    >>> [found[f"model.layers.{layer}"] for layer in range(4)]
    [0, 0, 1, 1]
    """
    parts = {name: _tensors(part) for name, part in _parts(model, model._no_split_modules)}
    sizes = {name: sum(map(_bytes, tensors)) for name, tensors in parts.items()}
    total, before = sum(sizes.values()), 0.0
    found: dict[str, int] = {}
    where: dict[int, int] = {}  # id of a tensor -> its GPU
    for name, tensors in parts.items():
        middle = before + sizes[name] / 2
        gpu = min(gpus - 1, int(gpus * middle / max(1, total)))
        shared = [where[id(tensor)] for tensor in tensors if id(tensor) in where]
        found[name] = shared[0] if shared else gpu
        where |= {id(tensor): found[name] for tensor in tensors}
        before += sizes[name]
    return found


def spread(model: "PreTrainedModel", devices: Sequence[str]) -> None:
    """Give a model that was made without memory its tensors, on several devices.

    Their values come later.

    Args:
        model: on the device "meta".
        devices: e.g. "cuda:0" and "cuda:1".

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 8}
    >>> with torch.device("meta"):
    ...     model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes))
    >>> spread(model, ["cpu", "cpu"])
    >>> model.device
    device(type='cpu')
    """
    from accelerate import dispatch_model

    found = {name: devices[gpu] for name, gpu in placement(model, len(devices)).items()}
    for name, device in found.items():
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        part = getattr(module, last)
        if isinstance(part, torch.nn.Module):
            part.to_empty(device=device)
        elif isinstance(part, torch.nn.Parameter):
            empty = torch.empty_like(part, device=device)
            setattr(module, last, torch.nn.Parameter(empty, part.requires_grad))
        else:
            setattr(module, last, torch.empty_like(part, device=device))
    model.tie_weights()  # what shared one tensor got one each
    dispatch_model(model, found)


def _parts(
    module: torch.nn.Module, whole: str | list[str] | set[str] | None, name: str = ""
) -> Iterator[tuple[str, torch.nn.Module | torch.Tensor]]:
    """Yield what lies on one GPU each: layers of some classes, and what is beside them."""
    classes = {whole} if isinstance(whole, str) else set(whole or ())
    if type(module).__name__ in classes or not any(
        type(inner).__name__ in classes for inner in module.modules()
    ):
        yield name, module
        return
    prefix = f"{name}." if name else ""
    for own in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        yield from ((f"{prefix}{last}", tensor) for last, tensor in own)
    for last, inner in module.named_children():
        yield from _parts(inner, whole, f"{prefix}{last}")


def _tensors(part: torch.nn.Module | torch.Tensor) -> list[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        return [part]
    return [*part.parameters(), *part.buffers()]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
