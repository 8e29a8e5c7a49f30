"""MLflow: a run in an experiment, on a server or in a database of one's own."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from evomerge.sections import Text, option
from evomerge.tracking import EVENT, Ending, Point, TrackedRun, Tracker, TrackerSection, tracker

_TAG = "evomerge.run"  # by which a run is found again: MLflow gives runs ids of its own
_AT_ONCE = 1000  # metrics, and
_PARAMETERS = 100  # parameters: what MLflow's API takes in one request
_LONGEST = 500  # characters of a parameter that every server takes


class MlflowSection(TrackerSection):
    """Options of MLflow.

    >>> MlflowSection(uri="http://localhost:5000").experiment
    'evomerge'
    """

    kind: Literal["mlflow"] = "mlflow"
    uri: Text | None = option(
        "of the tracking server, or of a database as sqlite:///mlflow.db; null: what"
        " MLFLOW_TRACKING_URI says, or MLflow's own default",
        None,
        example="http://localhost:5000",
    )
    experiment: Text = option("that the run belongs to", "evomerge")


@tracker(MlflowSection)
class Mlflow(Tracker):
    """MLflow: metrics against the scored items, parameters, the front as a file.

    >>> Mlflow.section(experiment="merges").kind
    'mlflow'
    """

    needs = "mlflow"

    def __init__(self, options: MlflowSection, run: TrackedRun):
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # the terminal is the search's
        self._client = MlflowClient(tracking_uri=options.uri)
        experiment = self._client.get_experiment_by_name(options.experiment)
        number = (
            self._client.create_experiment(options.experiment)
            if experiment is None
            else experiment.experiment_id
        )
        found = self._client.search_runs([number], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id, self._reached = found[0].info.run_id, _event(found[0])
            self._client.update_run(self._id, status="RUNNING")
        else:
            began = int(run.began * 1000)
            made = self._client.create_run(number, began, {_TAG: run.id}, run.name)
            self._id, self._reached = made.info.run_id, 0
        if not self._reached:
            self._describe(run.config)

    def _describe(self, config: Mapping[str, Any]) -> None:
        """Write down the plan, flat as parameters and whole as a file."""
        from mlflow.entities import Param

        flat = _flat(config.get("plan", {}), "")
        parameters = [Param(key, value[:_LONGEST]) for key, value in flat.items()]
        for first in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[first : first + _PARAMETERS])
        self._client.log_dict(self._id, dict(config), "campaign.json")

    def reached(self) -> int:
        return self._reached

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for point in points:
            at = int(point.at * 1000)
            values = {**point.values, EVENT: point.event}  # the last, of those before are there
            metrics = [Metric(_name(n), float(v), at, point.items) for n, v in values.items()]
            if len(batch) + len(metrics) > _AT_ONCE:
                self._client.log_batch(self._id, metrics=batch)
                batch = []
            batch += metrics
        if batch:
            self._client.log_batch(self._id, metrics=batch)

    def end(self, ending: Ending) -> None:
        if not ending.is_finished:
            self._client.set_terminated(self._id, "KILLED")
            return
        for name, value in ending.summary.items():
            self._client.set_tag(self._id, _name(name), str(value))
        table = {"columns": list(ending.columns), "data": [list(row) for row in ending.rows]}
        self._client.log_text(self._id, json.dumps(table, indent=1), "front.json")
        self._client.set_terminated(self._id, "FINISHED")


def _event(run: Any) -> int:
    return int(run.data.metrics.get(EVENT, 0))


def _name(name: str) -> str:
    """Return a name of those characters that MLflow's names may have."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _flat(value: Any, name: str) -> dict[str, str]:
    """Return nested mappings and lists as dotted names."""
    pairs: Any = ()
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    elif value is not None:
        return {name: str(value)}
    found: dict[str, str] = {}
    for key, entry in pairs:
        found |= _flat(entry, _name(f"{name}.{key}" if name else str(key)))
    return found
