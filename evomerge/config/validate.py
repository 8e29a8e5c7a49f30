"""A campaign file becomes a plan, or every fault of its form at once.

Nothing is loaded here but this text: `campaign.build` goes on to the sources and the tasks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.config.overrides import read_mapping
from evomerge.config.schema import CampaignPlan, know_what_is_registered
from evomerge.errors import placed
from evomerge.sections import parse


def read_plan(path: Path | str, settings: Sequence[str] = ()) -> CampaignPlan:
    """Read a campaign file.

    Args:
        path: the YAML file.
        settings: `a.b=YAML` overrides, in order.

    Raises:
        BadInput: with all faults of form, of the space, and of the controller.

    >>> read_plan("no-such.yaml")
    Traceback (most recent call last):
    evomerge.errors.BadInput: no-such.yaml: cannot be read (No such file or directory); check the \
path
    """
    data = read_mapping(path, settings)
    with placed(file=str(path)):
        return checked_plan(data)


def checked_plan(data: Mapping[str, Any]) -> CampaignPlan:
    """Return a campaign's mapping as a plan.

    Raises:
        BadInput: with all faults, keys relative to the mapping.

    >>> checked_plan({"name": "tiny", "seed": -1})
    Traceback (most recent call last):
    evomerge.errors.BadInput: seed: -1 is out of range; write a whole number of at least 0 and ...
    """
    know_what_is_registered()
    return parse(CampaignPlan, data)
