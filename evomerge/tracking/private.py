"""What of a campaign goes out to a tracker: no secrets, and no paths of this machine."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.archive.records import CampaignRow

_SECRET = re.compile(r"(^|_)(key|token|secret|password|headers|auth)s?($|_)", re.I)
_USER = re.compile(r"(?<=://)[^/@\s]+@")  # of an address: user and password
_LEFT_OUT = ("track", "host")  # where the trackers are, and this machine's name


def public_config(campaign: CampaignRow) -> dict[str, Any]:
    """Return a campaign's plan and provenance as they may be seen by others.

    Absolute paths are cut to their last part: the sources' hashes say what they are.

    >>> plan = {"seed": 7, "sources": {"models": {"ja": "/home/me/ja"}}, "track": ["wandb"]}
    >>> provenance = {"sources": {"ja": {"path": "/home/me/ja", "sha256": "9c1f"}}, "seed": 7}
    >>> row = CampaignRow(name="demo", plan=plan, provenance=provenance, state="", reason="")
    >>> public_config(row)["plan"]
    {'seed': 7, 'sources': {'models': {'ja': 'ja'}}}
    """
    return {
        "plan": _public(campaign["plan"]),
        "provenance": _public(campaign["provenance"]),
    }


def run_id(campaign: CampaignRow, began: float) -> str:
    """Return the id of a run: the same at every start, another for any other run.

    Args:
        campaign: as the archive has it.
        began: when it was first started.

    >>> row = CampaignRow(name="demo", plan={"seed": 7}, provenance={}, state="", reason="")
    >>> run_id(row, 0.0)
    'e92262c095d9b7be'
    """
    text = f"{campaign['name']} {campaign['plan']['seed']} {began!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _public(entry)
            for key, entry in value.items()
            if key not in _LEFT_OUT and not _SECRET.search(str(key))
        }
    if isinstance(value, list | tuple):
        return [_public(entry) for entry in value]
    if isinstance(value, str):
        return _public_text(value)
    return value


def _public_text(text: str) -> str:
    text = _USER.sub("", text)
    # a model and its adapter are two paths, joined by a plus
    parts = [Path(part).name if part.startswith(("/", "~")) else part for part in text.split("+")]
    return "+".join(parts)
