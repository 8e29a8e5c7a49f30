"""The tokenizer in a model's directory, and its settings of generation: can they be loaded?"""

from pathlib import Path

from evomerge.errors import one_line
from evomerge.sources.safetensors_file import read_json

# Each of these alone makes a tokenizer of some class of transformers'.
_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json",
    "vocab.txt", "tekken.json", "tokenizer_config.json",
)  # fmt: skip


def has_tokenizer(path: Path) -> bool:
    """Tell whether a model's directory has a tokenizer of some kind.

    >>> has_tokenizer(Path("nowhere"))
    False
    """
    if any((path / name).exists() for name in _FILES):
        return True
    return any(path.glob("*.tiktoken"))


def has_chat_template(path: Path) -> bool:
    """Tell whether a model directory's tokenizer has a chat template.

    >>> has_chat_template(Path("nowhere"))
    False
    """
    settings = read_json(path / "tokenizer_config.json")
    if isinstance(settings, dict) and settings.get("chat_template"):
        return True
    return (path / "chat_template.jinja").exists()


def vocabulary(path: Path) -> dict[str, int]:
    """Return token -> id as tokenizer.json has it, or the tokenizer that transformers loads.

    Returns:
        Empty where there is no tokenizer, or none that can be loaded.

    Raises:
        ValueError: tokenizer.json is there and makes no sense.

    >>> vocabulary(Path("nowhere"))
    {}
    """
    if not (path / "tokenizer.json").exists():
        return loaded_vocabulary(path)
    data = read_json(path / "tokenizer.json")
    try:
        known = data["model"].get("vocab") or {}
        if isinstance(known, list):  # unigram models list [token, score]
            known = {token: i for i, (token, *_) in enumerate(known)}
        return known | {t["content"]: t["id"] for t in data.get("added_tokens") or []}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("tokenizer.json is no tokenizer") from None


def loaded_vocabulary(path: Path) -> dict[str, int]:
    """Return token -> id of the tokenizer that transformers loads, with all that it adds.

    Two directories that keep one tokenizer in different files have the same.

    >>> loaded_vocabulary(Path("nowhere"))
    {}
    """
    if not has_tokenizer(path):
        return {}
    from transformers import AutoTokenizer

    try:
        return dict(AutoTokenizer.from_pretrained(path, trust_remote_code=False).get_vocab())
    except Exception:  # whatever it raises means that it cannot be had
        return {}


def loading_fault(path: Path, remote_code: bool) -> str:
    """Return why the tokenizer in a directory cannot be loaded; "" if it can.

    Args:
        path: of the model.
        remote_code: import code that comes with it.

    >>> loading_fault(Path("nowhere"), False)
    'there is none'
    """
    if not has_tokenizer(path):
        return "there is none"
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(path, trust_remote_code=remote_code)
    except Exception as error:  # of files that are no tokenizer: any kind
        return one_line(error, limit=160)
    return ""


def generation_fault(path: Path) -> str:
    """Return why the settings of generation in a directory cannot be loaded; "" if they can.

    >>> generation_fault(Path("nowhere"))
    ''
    """
    if not (path / "generation_config.json").is_file():
        return ""
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(path)
    except Exception as error:  # of a file that is none: any kind
        return one_line(error, limit=160)
    return ""
