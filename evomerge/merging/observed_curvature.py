"""The diagonal of a model's Fisher information, over texts that it reads."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from evomerge.merging.live_model import Live
from evomerge.node.phases import Steps
from evomerge.sources.transformers_loading import as_saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SEED = 20250911  # of the labels that the model draws


def fisher_of(
    live: Live, tokens: Sequence[torch.Tensor], steps: Steps
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read texts, and return the mean squared gradient of the log-likelihood by weight.

    F = E_x E_{y ~ p(y|x)} (d log p(y|x) / dW)^2 (Matena and Raffel 2022, arXiv:2111.09832,
    equation 4). The inner mean is over one label that the model itself draws at each token, so that
    no answers are needed; the terms of different tokens are uncorrelated then, and a text's
    gradient is squared as a whole. Per token, so that long texts do not count for more.

    Args:
        live: filled; its parameters ask for gradients within this call alone.
        tokens: (1, tokens) int64 each.
        steps: hears of how many texts are read.

    Returns:
        Name -> float32 of the weight's shape, by the checkpoint's names.

    >>> from evomerge.testing.observed import example_filled
    >>> fisher, _ = fisher_of(example_filled(), [torch.tensor([[1, 2, 3]])], Steps("", "texts", 1))
    >>> fisher["model.norm.weight"].shape, bool((fisher["model.norm.weight"] >= 0).all())
    (torch.Size([16]), True)
    """
    asked = {n: p for n, p in live.model.named_parameters() if p.is_floating_point()}
    sums = {name: torch.zeros_like(parameter) for name, parameter in asked.items()}
    draws, count, hooks = torch.Generator().manual_seed(_SEED), 0, []
    for name, parameter in asked.items():
        parameter.requires_grad_(True)
        hooks.append(parameter.register_post_accumulate_grad_hook(_squared_into(sums[name])))
    try:
        for number, ids in enumerate(tokens):
            steps.done(number)
            _likelihood(live.model(input_ids=ids, use_cache=False).logits, draws).backward()
            count += ids.shape[1]
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in asked.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    means = {name: sums.pop(name).div_(max(1, count)).cpu() for name in asked}
    # squares are taken apart and renamed as the weights are
    model = cast("PreTrainedModel", live.model)  # as it has a tokenizer
    found = {name: tensor.contiguous() for name, tensor in as_saved(model, means).items()}
    by_memory = {asked[name].data_ptr(): mean for name, mean in means.items()}
    for name, tensor in live.direct.items():  # by the checkpoint's own names
        if tensor.data_ptr() in by_memory:
            found[name] = by_memory[tensor.data_ptr()]
    return found, {}


def _squared_into(total: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Return a hook that adds a parameter's squared gradient, whole by then, and frees it."""

    def add(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None, "the hook is called when it is there"
        total.addcmul_(parameter.grad, parameter.grad)
        parameter.grad = None

    return add


def _likelihood(logits: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Return the log-likelihood of labels drawn from logits of (..., classes), summed up."""
    logs = torch.log_softmax(logits.float().reshape(-1, logits.shape[-1]), dim=-1)
    # drawn on the processor, so that every device draws the same
    labels = torch.multinomial(logs.detach().exp().cpu(), 1, generator=draws)
    return logs.gather(1, labels.to(logs.device)).sum()
