"""sentence-transformers' models, around a transformers model that is filled elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import BadInput, Fault

if TYPE_CHECKING:
    import torch

INSTALL = 'pip install "evomerge[sentences]"'


def is_installed() -> bool:
    """Tell whether sentence-transformers can be imported.

    >>> isinstance(is_installed(), bool)
    True
    """
    from importlib.util import find_spec

    return find_spec("sentence_transformers") is not None


def sentence_model_around(model: "torch.nn.Module", path: Path, device: str) -> Any:
    """Return a SentenceTransformer whose transformers model is another one.

    Args:
        model: of the class that the directory's config names.
        path: a directory that `sentence_modules.module_tensors` took.
        device: where it lies.

    Raises:
        BadInput: sentence-transformers is not installed, or there is no such directory.

    >>> sentence_model_around(None, Path("nowhere"), "cpu")
    Traceback (most recent call last):
    evomerge.errors.BadInput: ...
    """
    if not path.is_dir():
        raise BadInput(Fault("", f"there is no directory '{path}'"))
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        wrong = "a sentence embedder is scored by sentence-transformers, which is not installed"
        raise BadInput(Fault("", wrong, INSTALL)) from None
    made = SentenceTransformer(
        str(path),
        device=device,
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},
    )
    first = made[0]
    own = "model" if "model" in first._modules else "auto_model"  # the latter before version 6
    setattr(first, own, model)
    return made.eval().requires_grad_(False)
