"""A search as a study of Optuna's, in a database that its dashboard opens.

Optuna adds trials one by one, with some dozen statements each: minutes for thousands. So the rows
are written at once, into the tables that Optuna has made, by its own classes; a test reads them
back by the public API. Another version's tables, which its schema's version tells, get them one by
one.
"""

import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evomerge.search.axes import GeneRange
from evomerge.search.objectives import Objective
from evomerge.whole_files import written_beside

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

_SCHEMA = "v3.2.0.a"  # the version of Optuna's tables that are known here
_AT_ONCE = 1000  # trials whose rows are in memory together


class Trial(NamedTuple):
    """One candidate.

    Attributes:
        genome: (dimension,) float64 in [0, 1].
        values: one for each objective, as scored; None of a failure.
        constraints: kept where they are at most 0; Optuna takes no other trial for the best.
        began, ended: in seconds since 1970.
        attributes: whatever else is known, JSON-able.

    >>> Trial(np.array([0.5]), None, (), 0.0, 1.0, {"reason": "not finite"}).values is None
    True
    """

    genome: np.ndarray
    values: tuple[float, ...] | None
    constraints: tuple[float, ...]
    began: float
    ended: float
    attributes: Mapping[str, Any]


class Study(NamedTuple):
    """One search.

    Attributes:
        name: of the study.
        objectives: with their directions.
        names: of the genes.
        ranges: of the genes.
        attributes: what is known of the search, JSON-able.
        trials: in their order.

    >>> Study("demo", (Objective("maths"),), ["weight"], [GeneRange()], {}, []).name
    'demo'
    """

    name: str
    objectives: Sequence[Objective]
    names: Sequence[str]
    ranges: Sequence[GeneRange]
    attributes: Mapping[str, Any]
    trials: Sequence[Trial]


def write_studies(studies: Iterable[Study], path: Path) -> None:
    """Write studies into a new SQLite file, which takes the place of one that is there.

    Raises:
        OSError: it cannot be written.

    >>> import tempfile
    >>> trial = Trial(np.array([0.25]), (0.5,), (0.0,), 0.0, 60.0, {"candidate": 7})
    >>> study = Study("demo", (Objective("maths"),), ["weight"], [GeneRange(0.0, 2.0)], {}, [trial])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_studies([study], Path(folder) / "optuna.db")
    ...     import optuna
    ...     found = optuna.load_study(study_name="demo", storage=f"sqlite:///{folder}/optuna.db")
    ...     found.best_trial.params, found.best_value
    ({'weight': 0.5}, 0.5)
    """
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with written_beside(path) as temporary:
            storage = optuna.storages.RDBStorage(f"sqlite:///{temporary.resolve()}")
            before = 0
            for study in studies:
                _write_study(study, before, storage)
                before += len(study.trials)
            storage.remove_session()
            storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(before)


def _write_study(study: Study, before: int, storage: "RDBStorage") -> None:
    """Write one study; `before` trials of others are there."""
    import optuna
    from optuna.study import StudyDirection

    made = optuna.create_study(
        storage=storage,
        study_name=study.name,
        directions=[StudyDirection[o.direction.upper()] for o in study.objectives],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made.set_metric_names([objective.name for objective in study.objectives])
    for key, value in study.attributes.items():
        made.set_user_attr(key, value)
    distributions = {
        name: _distribution(of) for name, of in zip(study.names, study.ranges, strict=True)
    }
    trials = (_frozen(trial, study, distributions) for trial in study.trials)
    if storage.get_head_version() != _SCHEMA:
        made.add_trials(trials)
        return
    _insert(trials, made._study_id, before, storage)


def _distribution(of: GeneRange) -> "BaseDistribution":
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if of.kind == "choice":
        return CategoricalDistribution(tuple(of.labels))
    if of.kind == "whole":
        return IntDistribution(int(of.low), int(of.high))
    return FloatDistribution(of.low, of.high, log=of.kind == "log")


def _frozen(
    trial: Trial, study: Study, distributions: Mapping[str, "BaseDistribution"]
) -> "FrozenTrial":
    """Return a trial as Optuna has it."""
    from optuna.trial import FrozenTrial, TrialState

    values = [of.value(float(u)) for of, u in zip(study.ranges, trial.genome, strict=True)]
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.FAIL if trial.values is None else TrialState.COMPLETE,
        value=None,
        values=None if trial.values is None else list(trial.values),
        datetime_start=datetime.fromtimestamp(trial.began),
        datetime_complete=datetime.fromtimestamp(trial.ended),
        params=dict(zip(study.names, values, strict=True)),
        distributions=dict(distributions),
        user_attrs=dict(trial.attributes),
        system_attrs={"constraints": list(trial.constraints)} if trial.values else {},
        intermediate_values={},
    )


def _insert(
    trials: Iterable["FrozenTrial"], study: int, before: int, storage: "RDBStorage"
) -> None:
    """Insert the trials of a study, in one transaction.

    Args:
        trials: checked, in their order.
        study: its number in the database.
        before: how many trials are there of other studies.
        storage: the database, in which nobody else writes.
    """
    from optuna.storages._rdb import models

    numbered = enumerate(trials)
    with storage.engine.begin() as connection:
        while chunk := list(itertools.islice(numbered, _AT_ONCE)):
            rows: dict[Any, list[dict[str, Any]]] = {}
            for number, trial in chunk:
                of_trial = {"trial_id": before + number + 1}
                numbers = of_trial | {"study_id": study, "number": number}
                rows.setdefault(models.TrialModel, []).append(numbers | _times_of(trial))
                for model, columns in _parts_of(trial):
                    rows.setdefault(model, []).append(of_trial | columns)
            for model, of_model in rows.items():  # trials first, to which the others refer
                connection.execute(model.__table__.insert(), of_model)


def _times_of(trial: "FrozenTrial") -> dict[str, Any]:
    """Return a trial's state and times, as their columns have them."""
    found: dict[str, Any] = {"state": trial.state}
    for column in ("datetime_start", "datetime_complete"):
        local: datetime = getattr(trial, column)
        found[column] = local.astimezone(UTC).replace(tzinfo=None)
    return found


def _parts_of(trial: "FrozenTrial") -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield what tables beside the trials' have of one, each row with its table's class."""
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models

    for objective, value in enumerate(trial.values or ()):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        row = {"objective": objective, "value": stored, "value_type": kind}
        yield models.TrialValueModel, row
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        yield (
            models.TrialParamModel,
            {
                "param_name": name,
                "param_value": distribution.to_internal_repr(value),
                "distribution_json": distribution_to_json(distribution),
            },
        )
    for model, attributes in (
        (models.TrialUserAttributeModel, trial.user_attrs),
        (models.TrialSystemAttributeModel, trial.system_attrs),
    ):
        for key, value in attributes.items():
            yield model, {"key": key, "value_json": json.dumps(value)}
