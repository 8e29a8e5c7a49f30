"""Which parts of a model are merged, as a part of its name: `models/ja:trunk`, `sdxl:unet,vae`.

A model's name without parts means what is usual for it: all of a transformers model, the denoiser
of a pipeline. With parts, only those are merged, and the rest stays as the frame has it. The parts
belong to the name so that a recipe, wherever it is read, merges the same tensors.
"""

import os
import re
from collections.abc import Sequence

from evomerge.sources.evidence import moved_place, split_evidence

TRUNK = "trunk"  # what a transformers model's class shares with those that have other heads

_NAMED = re.compile(r"(?P<model>.+):(?P<parts>[A-Za-z0-9_.-]+(?:,[A-Za-z0-9_.-]+)*)")


def split_parts(name: str) -> tuple[str, tuple[str, ...]]:
    """Split `model:part,part`; a path that is there as it is written has no parts.

    A function's source, `FILE.py:function@WEIGHTS`, has none either. What is known of a model
    beside its weights (see `evidence`) is left out.

    >>> split_parts("models/ja:trunk"), split_parts("org/sdxl:unet,text_encoder")
    (('models/ja', ('trunk',)), ('org/sdxl', ('unet', 'text_encoder')))
    >>> split_parts("models/ja"), split_parts("digits.py:mlp@7")
    (('models/ja', ()), ('digits.py:mlp@7', ()))
    """
    name, _ = split_evidence(name)
    match = _NAMED.fullmatch(name)
    if match is None or os.path.exists(name):
        return name, ()
    return match["model"], tuple(match["parts"].split(","))


def with_parts(model: str, parts: Sequence[str]) -> str:
    """Return a model's name with parts, those alone; without any, the name as it is.

    >>> with_parts("models/ja", ["trunk"]), with_parts("models/ja:unet", ()), with_parts("a", ())
    ('models/ja:trunk', 'models/ja:unet', 'a')
    """
    if not parts:
        return model
    return f"{split_parts(model)[0]}:{','.join(parts)}{split_evidence(model)[1].suffix}"


def like(place: str, name: str) -> str:
    """Return a place that stands for a model, with what the model's name says beside its own.

    That is the parts, and what is known of it.

    >>> like("elsewhere/ja", "models/ja:trunk"), like("elsewhere/ja", "models/ja")
    ('elsewhere/ja:trunk', 'elsewhere/ja')
    """
    return moved_place(with_parts(place, split_parts(name)[1]), name)
