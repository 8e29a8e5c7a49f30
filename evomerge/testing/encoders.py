"""Tiny encoders with heads of their own: fine-tunes of one trunk for different tasks."""

from pathlib import Path
from typing import Any

from evomerge.testing.tiny import tiny_tokenizer

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_bert(
    directory: Path | str,
    seed: int,
    labels: int = 0,
    *,
    near: Path | str | None = None,
    class_name: str = "",
    spread: float = 0.05,
    **changes: Any,
) -> Path:
    """Save a BERT of some 5,000 random parameters with its tokenizer; return its directory.

    Args:
        directory: where to save it.
        seed: of the weights.
        labels: of its classifier; 0 for a masked language model.
        near: a directory of a BERT, whose trunk it has with noise added.
        class_name: of another class than these.
        spread: the noise's deviation.
        changes: of the config.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in tiny_bert(folder, 0, 3).glob("*.safetensors"))
    ['model.safetensors']
    """
    import torch
    import transformers

    name = class_name or ("BertForSequenceClassification" if labels else "BertForMaskedLM")
    shape = SHAPE | {"vocab_size": 32, "intermediate_size": 32, "max_position_embeddings": 32}
    config = transformers.BertConfig.from_dict(shape | {"num_labels": labels or 2} | changes)
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if near is not None:
            trunk = transformers.BertModel.from_pretrained(near, add_pooling_layer=False)
            mine = dict(model.base_model.named_parameters())
            for key, parameter in trunk.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * spread
                mine[key].copy_(parameter + noise)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return Path(directory)
