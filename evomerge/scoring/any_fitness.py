"""An entry of a campaign's `fitness`: one of the registered kinds, told apart by its key."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from evomerge.errors import Fault, Faults
from evomerge.scoring.fitness import FitnessSection
from evomerge.scoring.kinds import FITNESSES
from evomerge.sections import one_of, refuse

_EVERY = {key: kind.section for key, kind in FITNESSES.all().items()}
_FIRST = ("task", "cost", "function", "judge")  # whose options others share
_KINDS = {key: _EVERY.pop(key) for key in _FIRST} | _EVERY


def _which(value: Any) -> str:
    given = value if isinstance(value, Mapping) else {}
    return next((kind for kind in _KINDS if given.get(kind) is not None), "task")


def _one_kind(value: Any) -> Any:
    """Refuse an entry of no kind or of several, and keys that belong to another kind."""
    if not isinstance(value, Mapping):
        return value
    entry = {key: given for key, given in value.items() if given is not None}
    kinds = [kind for kind in _KINDS if kind in entry]
    if len(kinds) != 1:
        wrong = f"has {' and '.join(kinds)}" if kinds else f"needs one of {', '.join(_KINDS)}"
        refuse([Fault("", wrong, "write one of them")])
    own = _KINDS[kinds[0]].model_fields
    known_keys = {key for section in _KINDS.values() for key in section.model_fields}
    faults = Faults()
    for key in [key for key in entry if key in known_keys and key not in own]:
        if entry[key] is not False:
            owner = next(kind for kind, section in _KINDS.items() if key in section.model_fields)
            faults.add(key, f"belongs to {owner}s, not to a {kinds[0]}", "leave it out")
        entry.pop(key)
    refuse(faults.found)
    return entry


if TYPE_CHECKING:
    AnyFitness = FitnessSection
else:
    AnyFitness = Annotated[one_of(_KINDS, _which), BeforeValidator(_one_kind)]
