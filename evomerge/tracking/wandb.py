"""Weights & Biases: a run on its server, or in files that `wandb sync` takes there later.

W&B continues a run by its id. Online its server says how far the run is; offline each start leaves
a folder of its own, whose `.wandb` files are read back: records in LevelDB's log format
(https://github.com/google/leveldb/blob/main/doc/log_format.md) after seven bytes of W&B's own.
"""

import importlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from evomerge.sections import Text, option
from evomerge.tracking import (
    EVENT,
    ITEMS,
    Ending,
    Point,
    TrackedRun,
    Tracker,
    TrackerSection,
    tracker,
)

_BLOCK = 32768  # bytes; no record's piece goes over its end
_PIECE = struct.Struct("<IHB")  # of each piece: checksum, length, kind
_HEADER = 7  # bytes before the first block's first piece
_WHOLE, _LAST = 1, 4  # kinds of pieces that end a record


class WandbSection(TrackerSection):
    """Options of Weights & Biases.

    >>> WandbSection(project="merges", mode="offline").mode
    'offline'
    """

    kind: Literal["wandb"] = "wandb"
    project: Text = option("that the run belongs to", "evomerge")
    entity: Text | None = option("user or team; null: the account's own", None, example="my-team")
    mode: Literal["online", "offline"] | None = option(
        "offline: into files, which `wandb sync` sends later; null: what WANDB_MODE says, else"
        " online",
        None,
    )
    folder: Text | None = option(
        "in which W&B makes its folder `wandb`; null: the run's directory", None
    )


@tracker(WandbSection)
class Wandb(Tracker):
    """Weights & Biases: curves against the scored items, a summary, the front as a table.

    >>> Wandb.section(project="merges").kind
    'wandb'
    """

    needs = "wandb"

    def __init__(self, options: WandbSection, run: TrackedRun):
        import wandb

        folder = Path(options.folder) if options.folder else run.directory
        settings = wandb.Settings(
            silent=True,  # the terminal is the search's
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,  # host, user and command line
        )
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            mode=options.mode,
            dir=str(folder),
            id=run.id,
            name=run.name,
            resume="allow",
            config=dict(run.config),
            settings=settings,
        )
        is_offline = self._run.settings.mode == "offline"
        # each point's step is its event, and online W&B goes on after the last one
        self._reached = _last_event(folder, run.id) if is_offline else max(0, self._run.step - 1)
        self._run.define_metric(ITEMS)
        self._run.define_metric("*", step_metric=ITEMS)

    def reached(self) -> int:
        return self._reached

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            values = {**point.values, ITEMS: point.items, EVENT: point.event}
            self._run.log({**values, "_timestamp": point.at}, step=point.event)

    def end(self, ending: Ending) -> None:
        import wandb

        self._run.summary.update(dict(ending.summary))
        if ending.is_finished:
            rows = [list(row) for row in ending.rows]
            # in the summary: a table of the history would be a step of its own at each end
            self._run.summary["front"] = wandb.Table(columns=list(ending.columns), data=rows)
        self._run.finish(exit_code=0)


def _last_event(folder: Path, run_id: str) -> int:
    """Return the last event of the ledger that a run's offline files have."""
    found = [0]
    for file in sorted(folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")):
        for record in _records(file.read_bytes()):
            for item in record.history.item:
                if EVENT in (item.key, "/".join(item.nested_key)):
                    found.append(int(json.loads(item.value_json)))
    return max(found)


def _records(data: bytes) -> Iterator[Any]:
    """Yield the records of a `.wandb` file, up to one that is cut off."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    place, whole = _HEADER, b""
    while True:
        if _BLOCK - place % _BLOCK < _PIECE.size:  # no piece begins so near to a block's end
            place += _BLOCK - place % _BLOCK
        begin = place + _PIECE.size
        if begin > len(data):
            return
        _, length, kind = _PIECE.unpack(data[place:begin])
        place = begin + length
        if place > len(data):
            return
        whole += data[begin:place]
        if kind in (_WHOLE, _LAST):
            yield record.FromString(whole)
            whole = b""
