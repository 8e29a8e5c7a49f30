"""The worker: materializes recipes into its resident model and scores them.

It is warm: sources mapped, one model resident on its device, requests built.
"""

import gc
import os
import platform
import time
from typing import Any

import numpy as np

from evomerge.errors import CandidateFailure, SourceChanged, one_line
from evomerge.recipes.parameters import single
from evomerge.recipes.parse import from_json
from evomerge.scoring.fitness import open_fitness
from evomerge.scoring.outcome import Outcome
from evomerge.sources.digest import digest, files_of, touched
from evomerge.sources.source import open_source
from evomerge.workers.protocol import Job, WorkerPlan


class Worker:
    """Materializes recipes into its resident model and scores them."""

    def __init__(self, plan: WorkerPlan):
        import torch

        from evomerge.merging.live_model import resident
        from evomerge.merging.merger import Merger

        torch.set_num_threads(plan.threads)
        cuda = torch.cuda.is_available()
        device = ("cuda" if cuda else "cpu") if plan.device == "auto" else plan.device
        opened = {
            name: open_source(path, trust_remote_code=plan.trust_remote_code)
            for name, path in plan.sources.items()
        }
        for name, source in opened.items():
            if (found := digest(source).sha256) != plan.hashes[name]:
                hashes = f"sha256 {found[:12]} on {platform.node()}, and {plan.hashes[name][:12]}"
                raise SourceChanged(f"{source.place} has changed: {hashes} when it was hashed")
        self._files = [
            (source, str(file), touched(file))
            for source in opened.values()
            for file in files_of(source)
        ]
        self.name = f"{platform.node()}/{os.getpid()}/{device}"
        routed = plan.first["kind"] == "routing"  # whose sources are on the device as models
        self._merger = Merger(opened, plan.hashes, device, keep=not routed)
        self._merger.prepare(from_json(plan.first))
        self._resident = resident(
            opened[plan.frame], plan.compute_dtype, device, plan.trust_remote_code
        )
        self._flat: Any = None  # made for the first weights that come with a job
        self._plan, self._router = plan, None
        if routed:
            from evomerge.merging.live_routing import Router

            models = {name: self._load(name, device) for name in opened}
            self._router = Router(self._resident, opened, models)
            self._router.route(from_json(plan.first))
        self._splits = plan.splits
        self._fitness = {}
        for objective, spec in plan.fitness.items():
            fitness = open_fitness(spec, "worker", objective)
            split = plan.splits[objective]
            ordinals = sorted((*split.search, *split.heldout))
            fitness.prepare(self._resident.model, self._resident.tokenizer, ordinals)
            self._fitness[objective] = fitness

    def evaluate(self, job: Job) -> Outcome:
        """Merge and score one candidate; whatever it does wrong is in the outcome.

        Raises:
            SourceChanged: a source's files are not those that were hashed; nothing is scored.
        """
        clock = [time.perf_counter()]
        self._check_sources()
        try:
            recipe = from_json(job.recipe)
            if job.weights is None:
                checksum = self._materialize(recipe)
            else:
                checksum = self._take(recipe, job.weights)
            clock.append(time.perf_counter())
            scores = self._score(job.split)
            answers = self._answers(job.split) if job.split == "heldout" else {}
        except (Exception, SystemExit) as error:
            known = isinstance(error, CandidateFailure)
            reason = str(error) if known else one_line(error)
            error.__traceback__ = None  # its frames hold tensors
            _free_memory()
            seconds = np.diff([*clock, time.perf_counter()]).tolist()
            return Outcome("failed", reason, {}, *seconds, worker=self.name)
        seconds = np.diff([*clock, time.perf_counter()]).tolist()
        return Outcome("ok", "", scores, *seconds, checksum, self.name, answers)

    def _check_sources(self) -> None:
        for source, file, before in self._files:
            try:
                same = touched(file) == before
            except OSError:
                same = False
            if not same:
                raise SourceChanged(f"{source.place} has changed while the campaign ran")

    def _load(self, name: str, device: str) -> Any:
        """Return a source as a live model of its own."""
        from evomerge.merging.live_model import resident

        plan, source = self._plan, self._merger.sources[name]
        loaded = resident(source, plan.compute_dtype, device, plan.trust_remote_code)
        loaded.load(self._merger.stream(single(name, plan.dtype)))
        return loaded.model

    def _materialize(self, recipe: Any) -> str:
        import torch

        from evomerge.kernels.checksum import Checksum, tile_digests

        if recipe.kind == "routing":
            self._router.route(recipe)
            return ""  # no weight is made that could have a checksum
        if self._router is not None:
            self._router.restore()
        tensors = self._merger.sources[recipe.sources[0]].tensors
        digests = self._merger.fill(recipe, self._resident.direct)
        others = [name for name in tensors if name not in digests]

        def seen():
            for name, tensor in self._merger.stream(recipe, others):
                digests[name] = tile_digests(tensor)
                yield name, tensor

        self._resident.load(seen())
        checksum, dtype = Checksum(), getattr(torch, recipe.dtype)
        for name, tensor in tensors.items():
            checksum.add(name, dtype, tensor.shape, digests[name])
        return checksum.hexdigest()

    def _take(self, recipe: Any, weights: np.ndarray) -> str:
        """Put flattened weights in place; return their checksum."""
        import torch

        from evomerge.kernels.checksum import Checksum

        if self._flat is None:
            from evomerge.merging.live_model import Flat

            self._flat = Flat(self._resident, self._merger.sources[recipe.sources[0]])
        digests, checksum = self._flat.take(weights), Checksum()
        for name, tensor in self._merger.sources[recipe.sources[0]].tensors.items():
            checksum.add(name, torch.float32, tensor.shape, digests[name])
        return checksum.hexdigest()

    def _score(self, split: str) -> dict[str, np.ndarray]:
        import torch

        scores = {}
        for objective, ordinals in self._asked(split).items():
            _seed()  # a task that samples draws the same for every candidate
            with torch.inference_mode():
                found = self._fitness[objective].score(ordinals)
            if not np.isfinite(found).all():
                first = int(np.flatnonzero(~np.isfinite(found))[0])
                raise CandidateFailure(f"{objective} scored {found[first]} on item {first}")
            scores[objective] = found
        return scores

    def _answers(self, split: str) -> dict[str, list[str]]:
        said = {o: self._fitness[o].answers(asked) for o, asked in self._asked(split).items()}
        return {objective: answers for objective, answers in said.items() if answers is not None}

    def _asked(self, split: str) -> dict[str, tuple[int, ...]]:
        """Return objective -> ordinals of a split; an objective may hold nothing out."""
        found = {o: getattr(self._splits[o], split) for o in self._fitness}
        return {objective: ordinals for objective, ordinals in found.items() if ordinals}


def _seed() -> None:
    """Seed torch's generators; `torch.manual_seed` takes a millisecond where CUDA is not begun."""
    import torch

    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
