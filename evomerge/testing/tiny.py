"""Tiny real models."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(28)))


def tiny_tokenizer(words: Sequence[str] = WORDS) -> "PreTrainedTokenizerFast":
    """Return a word-level fast tokenizer over `words`, whose first four are special.

    >>> tiny_tokenizer()("w0 w27 and")["input_ids"]
    [4, 31, 3]
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def tiny_llama(
    directory: Path | str,
    seed: int,
    *,
    near: Path | str | None = None,
    spread: float = 0.02,
    dtype: str = "bfloat16",
    layers: int = 2,
    hidden: int = 16,
    tie: bool = True,
    words: Sequence[str] = WORDS,
) -> Path:
    """Save a Llama of some 5,000 random parameters, with its tokenizer; return its directory.

    Args:
        directory: where to save it.
        seed: of the weights.
        near: a directory of a model of the same shape; the weights are then its own plus
            normal noise of standard deviation `spread`, as of a fine-tune.
        spread: see `near`.
        dtype, layers, hidden, tie, words: of the model.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in tiny_llama(folder, seed=0).glob("*.safetensors"))
    ['model.safetensors']
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    generator = torch.Generator().manual_seed(seed)
    model: torch.nn.Module
    if near is None:
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=tie,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = LlamaForCausalLM(config)
        spread = 0.3  # large enough for random layers to change what the model says
    else:
        model = AutoModelForCausalLM.from_pretrained(near, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * spread
            if near is not None:
                parameter.add_(noise)
            elif "norm" in name:
                parameter.copy_(1.0 + noise)
            else:
                parameter.copy_(noise)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    tiny_tokenizer(words).save_pretrained(directory)
    return Path(directory)
