"""Routers of a mixture of experts, made from what a model thinks of each expert's prompts.

A router's row is the direction of the states that meet it when the base reads the expert's prompts:
a token whose state points the same way is answered by that expert.
"""

from collections.abc import Sequence
from typing import Any

import torch

from evomerge.errors import BadInput, Fault
from evomerge.export.moe_form import MoeSection

_SMALLEST = 1e-8  # length of a mean state, as a divisor


def routers(section: MoeSection, model: Any, tokenizer: Any) -> torch.Tensor:
    """Return (layers, experts, hidden) float32 router weights, each row of length one.

    The mean over an expert's positive prompts, less that over its negative ones. mergekit-moe takes
    the states before a layer; here they are those before its MLP, which is what a router reads.

    Args:
        section: with prompts.
        model: the base, of transformers, in evaluation.
        tokenizer: its own.

    Raises:
        BadInput: a prompt has no token.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> live = example_live()
    >>> section = MoeSection(base_model="a", experts=[
    ...     {"source_model": "a", "positive_prompts": ["w1 w2"]},
    ...     {"source_model": "b", "positive_prompts": ["w7"]}])
    >>> rows = routers(section, live.model, live.tokenizer)
    >>> rows.shape, rows.norm(dim=-1).round(decimals=4).unique()
    (torch.Size([2, 2, 16]), tensor([1.]))
    """
    rows = []
    for index, expert in enumerate(section.experts):
        key = f"experts.{index}"
        row = _mean(section, model, tokenizer, expert.positive_prompts, f"{key}.positive_prompts")
        if against := expert.negative_prompts:
            row = row - _mean(section, model, tokenizer, against, f"{key}.negative_prompts")
        rows.append(row / row.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST))
    return torch.stack(rows, 1)


def random_routers(section: MoeSection, layers: int, hidden: int) -> torch.Tensor:
    """Return (layers, experts, hidden) float32 router weights, each row a random direction.

    >>> section = MoeSection(base_model="a", gate_mode="random",
    ...                      experts=[{"source_model": "a"}, {"source_model": "b"}])
    >>> random_routers(section, 3, 16).shape
    torch.Size([3, 2, 16])
    """
    generator = torch.Generator().manual_seed(section.seed)
    rows = torch.randn((layers, len(section.experts), hidden), generator=generator)
    return rows / rows.norm(dim=-1, keepdim=True)


def _mean(
    section: MoeSection, model: Any, tokenizer: Any, prompts: Sequence[str], key: str
) -> torch.Tensor:
    """Return the (layers, hidden) mean over prompts of what their routers would read."""
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        if not ids.numel():
            wrong = f"{prompt!r} has no token"
            raise BadInput(Fault(key, wrong, "write another"))
        states = _states(model, ids, section.gate_mode == "cheap_embed")
        is_whole = section.gate_mode in ("hidden_avg", "cheap_embed")
        found.append(states.mean(1) if is_whole else states[:, -1])
    return torch.stack(found).mean(0)


def _states(model: Any, ids: torch.Tensor, embedded: bool) -> torch.Tensor:
    """Return the (layers, tokens, hidden) float32 states before each layer's MLP.

    Or, of `embedded`, the embeddings for every layer.
    """
    layers = model.model.layers
    ids = ids.to(model.device)
    with torch.inference_mode():
        if embedded:
            embeddings = model.get_input_embeddings()(ids)[0].float().cpu()
            return embeddings.expand(len(layers), *embeddings.shape)
        seen: list[torch.Tensor] = []
        hooks = [
            layer.mlp.register_forward_pre_hook(
                lambda _, inputs: seen.append(inputs[0][0].float().cpu())
            )
            for layer in layers
        ]
        try:
            model(ids)
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(seen)
