"""What is wrong with the parts of sources that a campaign file asks to merge."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.errors import Fault
from evomerge.sources.factory import parse_factory


def part_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return what is wrong with `heads` and `parts` beside the models.

    Args:
        fields: of the section of sources, those that are right by themselves.

    >>> [fault.key for fault in part_faults({"heads": "keep", "parts": ["unet"]})]
    ['parts']
    """
    keeps_heads, parts = fields.get("heads") == "keep", fields.get("parts") or ()
    if keeps_heads and parts:
        wrong = "the trunk is merged, and no parts are named beside it"
        yield Fault("parts", wrong, "leave out one of heads and parts")
    for part in parts:
        if part is not None and not re.fullmatch(r"[A-Za-z0-9_.-]+", part):
            yield Fault("parts", f"'{part}' is no part", "write e.g. [unet, text_encoder]")
    if not keeps_heads and not parts:
        return
    for label, name in (fields.get("models") or {}).items():
        if name is not None and parse_factory(name):
            wrong = "is made by a function, and has neither a head nor parts"
            yield Fault(f"models.{label}", wrong, "leave out heads and parts")
