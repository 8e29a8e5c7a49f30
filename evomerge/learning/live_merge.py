"""A model that is merged by coefficients, run, and differentiated by them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evomerge.learning.batches import Batch
from evomerge.learning.failure import Unlearnable
from evomerge.learning.memory import KEPT_BYTES
from evomerge.learning.parting import Parting
from evomerge.merging.live_model import LiveModel
from evomerge.merging.source_weights import SourceWeights
from evomerge.sources.source import Source


class LiveMerge:
    """One live model whose weights are W_0 + sum_i c_i (W_i - W_0), with c constant in each cell.

    The merged weights W are leaves of the graph, and the coefficients come by the chain rule,

        dL/dc_ig = sum over tensors t of cell g of <dL/dW_t, W_it - W_0t>,

    so that a step costs one backward pass and N inner products, whatever N models there are, and
    no tensor's gradient outlives its inner products.

    Attributes:
        model: of transformers, in eval mode.
        tokenizer: the base's.
        pad: an id to fill short texts with.
        device: where it is.
        names: of the tensors that the coefficients move.
        models: how many.
        parting: of the tensors into cells.

    >>> import tempfile
    >>> from evomerge.learning.parting import parted
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base = open_source(str(tiny_llama(f"{folder}/base", 0)))
    ...     model = open_source(str(tiny_llama(f"{folder}/a", 1, near=base.path)))
    ...     merge = LiveMerge(base, [model])
    ...     merge.part(parted(merge.names, "model"))
    ...     merge.load(torch.zeros(1, 1))
    ...     lowered = merge.backward(merge.model.model.norm.weight.sum())
    >>> merge.gradient().shape
    torch.Size([1, 1])
    """

    parting: Parting

    def __init__(
        self,
        base: Source,
        models: Sequence[Source],
        *,
        dtype: str = "float32",
        device: str = "cpu",
        trust_remote_code: bool = False,
        kept_bytes: int = KEPT_BYTES,
    ):
        """
        Args:
            base: W_0.
            models: W_i, of the same tensors.
            dtype: in which it is merged, run and differentiated.
            device: e.g. "cpu" or "cuda".
            trust_remote_code: run modelling code that comes with the base.
            kept_bytes: of task vectors; where all take more, none is kept.

        Raises:
            Unlearnable: some of its parameters are not tensors of the checkpoint as they are, it
                has no tokenizer, or no model differs from it.
        """
        if base.factory is not None:
            raise Unlearnable("the sources are modules of their own, not language models")
        live = LiveModel(base, dtype, device, trust_remote_code)
        if live.tokenizer is None:
            raise Unlearnable("the base has no tokenizer")
        self.model, self.tokenizer, self.device = live.model, live.tokenizer, device
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        self.pad = next((i for i in ids if i is not None), 0)
        self.models = len(models)
        self._dtype: torch.dtype = getattr(torch, dtype)
        sources = {"base": base} | {str(i): model for i, model in enumerate(models)}
        self._weights = SourceWeights(sources, torch.device(device), room=0)
        self._targets = live.direct
        filled = {tensor.data_ptr() for tensor in live.direct.values()}
        for name, parameter in live.model.named_parameters():
            if parameter.data_ptr() not in filled:
                raise Unlearnable(f"{name} is no tensor of the checkpoint as it is")
        self.names = tuple(live.direct)
        self._kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        size = (
            (self.models + 1) * sum(t.numel() for t in live.direct.values()) * self._dtype.itemsize
        )
        if size <= kept_bytes:
            self._kept = {name: self._read(name) for name in self.names}
        self._gradient = torch.zeros(0)
        for name, tensor in live.direct.items():
            if isinstance(tensor, torch.nn.Parameter) and self._moves(name):
                tensor.requires_grad_(True)
                tensor.register_post_accumulate_grad_hook(self._hook(name))
        if not any(tensor.requires_grad for tensor in live.direct.values()):
            raise Unlearnable("no model differs from the base")

    def part(self, parting: Parting) -> None:
        """Take other cells from now on, and forget a gradient that was not taken."""
        self.parting = parting
        shape = (len(parting.cells), self.models)
        self._gradient = torch.zeros(shape, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def load(self, coefficients: torch.Tensor) -> None:
        """Overwrite the weights by those of (cells, models) coefficients."""
        coefficients = coefficients.to(self.device, self._dtype)
        for name, target in self._targets.items():
            base, vectors = self._vectors(name)
            shares = coefficients[self.parting.row[name]]
            merged = torch.addmv(base, vectors.T, shares)  # W = W_0 + sum_i c_i tau_i
            target.copy_(merged.view(target.shape))

    @torch.no_grad()
    def load_model(self, index: int) -> None:
        """Overwrite the weights by those of one model."""
        for name, target in self._targets.items():
            target.copy_(self._weights.tensor(str(index), name))

    def run(self, batch: Batch, states: bool = False) -> Any:
        """Return the model's output for a batch, as transformers gives it.

        Raises:
            Unlearnable: it has no logits for each token.
        """
        output = self.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            output_hidden_states=states,
            use_cache=False,
        )
        logits = getattr(output, "logits", None)
        if logits is None or logits.ndim != 3 or logits.shape[:2] != batch.ids.shape:
            raise Unlearnable(f"a {type(self.model).__name__} predicts no next tokens")
        return output

    def backward(self, loss: torch.Tensor) -> float:
        """Add a loss's gradient by the coefficients to `gradient`; return the loss."""
        loss.backward()
        return float(loss.detach())

    def gradient(self) -> torch.Tensor:
        """Return the (cells, models) float64 gradient of the losses since it was last asked."""
        taken, self._gradient = self._gradient, torch.zeros_like(self._gradient)
        return taken.cpu()

    def norms(self) -> torch.Tensor:
        """Return |tau_i|^2 in each tensor, (tensors, models) float64, in the order of `names`."""
        rows = [self._vectors(name)[1].double().square().sum(1).cpu() for name in self.names]
        return torch.stack(rows)

    def gram(self) -> torch.Tensor:
        """Return <tau_i, tau_j> within each cell, (cells, models, models) float64."""
        found = torch.zeros(len(self.parting.cells), self.models, self.models, dtype=torch.float64)
        for name in self.names:
            vectors = self._vectors(name)[1].double()
            found[self.parting.row[name]] += (vectors @ vectors.T).cpu()
        return found

    def _hook(self, name: str) -> Callable[[torch.Tensor], None]:
        def accumulate(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            parameter.grad = None  # whose memory the next layer down takes
            if gradient is not None:
                products = self._vectors(name)[1] @ gradient.reshape(-1)  # <dL/dW, tau_i>
                self._gradient[self.parting.row[name]] += products.double()

        return accumulate

    def _moves(self, name: str) -> bool:
        """Tell whether a model differs from the base in a tensor; unknown where none is kept."""
        return name not in self._kept or bool(self._kept[name][1].any())

    def _vectors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._kept[name] if name in self._kept else self._read(name)

    @torch.no_grad()
    def _read(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a tensor of the base, (elements,), and its task vectors, (models, elements)."""
        base = self._weights.tensor("base", name).to(self._dtype).reshape(-1)
        vectors = torch.empty(self.models, len(base), dtype=self._dtype, device=base.device)
        for i in range(self.models):
            torch.sub(self._weights.tensor(str(i), name).reshape(-1), base, out=vectors[i])
        return base, vectors
