"""The worker: materializes recipes into its live model and scores them.

It is warm: sources mapped, one model on its device, requests built.
"""

import functools
import gc
import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evomerge.engines import ENGINES, EngineOptions
from evomerge.engines.transformers_engine import TransformersEngine
from evomerge.environment import cores
from evomerge.errors import CandidateFailure, SourceChanged, one_line
from evomerge.kernels.checksum import Checksum
from evomerge.merging.device_memory import room_for_sources
from evomerge.merging.live_model import FlatWeights, Live, LiveModel, open_live_model
from evomerge.merging.live_routing import Router
from evomerge.merging.merger import Merger
from evomerge.node.phases import phase
from evomerge.recipes.parameters import single
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.scoring.fitness import Fitness
from evomerge.scoring.generators import seed_torch
from evomerge.scoring.lm_eval_loading import mute_loggers
from evomerge.scoring.lm_eval_model import answer
from evomerge.scoring.open_fitness import open_fitness
from evomerge.scoring.outcome import Outcome
from evomerge.sources.alignment import all_aligned
from evomerge.sources.digest import digest, files_of, touched
from evomerge.sources.named_parts import TRUNK
from evomerge.sources.source import Source, open_source
from evomerge.workers.engine_check import check_engine
from evomerge.workers.experts import learn_from_experts
from evomerge.workers.protocol import Job, WorkerPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("evomerge")

UPDATE = "update"  # beside kinds of request: the change of weights before they are answered

_QUICK = 5.0  # seconds, in which what is done for the first time may count

_MEMORY = 0.5  # of a device, for an engine that keeps its own caches there; sources lie beside it


class Worker:
    """Materializes recipes into its live model and scores them.

    Attributes:
        name: HOST/PID/DEVICE.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> from evomerge.workers.protocol import Job
    >>> campaign = example_campaign(hashed=True)
    >>> Worker(campaign.worker).evaluate(Job(1, campaign.space.first, "search")).status
    'ok'
    """

    def __init__(self, plan: WorkerPlan):
        """
        Raises:
            SourceChanged: a source is not the one that was hashed.
            BadInput: a source or a fitness cannot be opened here.
        """
        torch.set_num_threads(plan.threads or cores())
        device = plan.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = f"{platform.node()}/{os.getpid()}/{device}"
        self._plan, self._device = plan, device
        log.info("this is %s, with %d threads", self.name, torch.get_num_threads())
        phase("opening the sources")
        self._sources = _open_sources(plan)
        self._files: dict[str, tuple[Source, tuple[int, ...]]] = {}
        for source in self._sources.values():
            for file in map(str, files_of(source)):
                if file not in self._files:  # which sources may share
                    self._files[file] = (source, touched(file))
        is_routed = isinstance(
            plan.first, RoutingRecipe
        )  # then sources are on the device as models
        frame = self._sources[plan.frame]
        phase("opening the live model")
        self._engine = ENGINES.get(plan.engine).open(frame, self._engine_options)
        room = 0 if is_routed else room_for_sources(device, plan.sources_bytes, plan.device_share)
        # where vLLM spreads the model over several GPUs, each merges what it keeps
        merging = "cpu" if plan.gpus > 1 and plan.engine == "vllm" else device
        self._merger = Merger(self._sources, plan.hashes, merging, room)
        self._merger.prepare(plan.prepared or (plan.first,))
        self._flat: FlatWeights | None = None  # made for the first weights that come with a job
        self._router: Router | None = None
        if isinstance(plan.first, RoutingRecipe):
            live = self._live_model  # modules of factories are not routed
            assert isinstance(live, LiveModel)
            models = {name: self._loaded(source) for name, source in self._sources.items()}
            self._router = Router(live, self._sources, models)
            self._router.route(plan.first)
        self._fitness: dict[str, Fitness] = {}
        for objective, section in plan.fitness.items():
            phase(f"preparing the items of {objective}")
            fitness = open_fitness(section, plan.own_test)
            split = plan.splits[objective]
            ordinals = sorted((*split.search, *split.heldout))
            fitness.prepare(self._engine, ordinals)
            self._fitness[objective] = fitness
        for fitness in self._fitness.values():
            fitness.follow(self._fitness)
        learn_from_experts(plan, device, self._fitness, self._materialize)
        options = self._engine_options
        check_engine(self._engine, options, frame, plan, self._merger, self._fitness)
        mute_loggers()  # for good, as to do so for every score takes milliseconds

    def close(self) -> None:
        """Give back what the engine took; nothing is scored after that."""
        self._engine.close()

    def evaluate(self, job: Job) -> Outcome:
        """Merge and score one candidate; whatever it does wrong is in the outcome.

        Raises:
            SourceChanged: a source's files are not those that were hashed; nothing is scored.
        """
        clock = [time.perf_counter()]
        self._check_sources()
        try:
            if job.weights is None:
                checksum = self._materialize(job.recipe)
            else:
                checksum = self._take(job.recipe, job.weights)
            clock.append(time.perf_counter())
            wanted = job.ordinals or self._ordinals(job.side)
            scores = self._score(wanted)
            unjudged = {name: self._said(name, wanted[name]) for name in wanted.keys() - scores}
            answers = self._answers(job.side) if job.side == "heldout" else {}
        except SourceChanged:
            raise
        except (Exception, SystemExit) as error:
            is_known = isinstance(error, CandidateFailure)
            reason = str(error) if is_known else one_line(error)
            told = "" if is_known and error.__cause__ is None else _told(error)
            _drop_frames(error)
            _free_memory()
            ends = [*clock[1:], time.perf_counter()]
            merging, scoring = ends[0] - clock[0], ends[-1] - ends[0]
            return Outcome("failed", reason, {}, merging, scoring, worker=self.name, traceback=told)
        merging, scoring = clock[1] - clock[0], time.perf_counter() - clock[1]
        return Outcome("ok", "", scores, merging, scoring, checksum, self.name, answers, unjudged)

    def expect(self, jobs: Sequence[Job]) -> None:
        """Hear which jobs come next, one after the other, that are asked the same questions."""
        self._engine.expect(self._merger, [job.recipe for job in jobs])

    def _check_sources(self) -> None:
        for file, (source, before) in self._files.items():
            try:
                is_same = touched(file) == before
            except OSError:
                is_same = False
            if not is_same:
                raise SourceChanged(f"{source.place} has changed while the campaign ran")

    @property
    def _engine_options(self) -> EngineOptions:
        plan = self._plan
        return EngineOptions(
            plan.compute_dtype,
            self._device,
            plan.trust.remote_code,
            _MEMORY * plan.device_share,
            plan.gpus,
            plan.sources_bytes,
            plan.by_request,
            tuple(self._sources.values()),
            plan.candidates_each,
            plan.quantize,
            {plan.labels.get(n, n): s for n, s in self._sources.items() if s.parts == (TRUNK,)},
        )

    @property
    def _live_model(self) -> Live | None:
        """What transformers runs; None in other engines."""
        return self._engine.live if isinstance(self._engine, TransformersEngine) else None

    def _loaded(self, source: Source) -> "PreTrainedModel":
        """Return a source as a live model of its own."""
        plan = self._plan
        live = open_live_model(source, plan.compute_dtype, self._device, plan.trust.remote_code)
        name = next(n for n, s in self._sources.items() if s is source)
        live.load(self._merger.stream(single(name, plan.dtype)))
        assert isinstance(live, LiveModel)
        return live.model

    def _materialize(self, recipe: Recipe) -> str:
        """Let the live model be that of a recipe; return its weights' checksum."""
        if isinstance(recipe, RoutingRecipe):
            if self._router is None:
                raise CandidateFailure("this worker was started for a space of another kind")
            self._router.route(recipe)
            return ""  # no weight is made that could have a checksum
        if self._router is not None:
            self._router.restore()
        digests = self._engine.become(self._merger, recipe)
        if self._engine.serves_adapters:  # no weight is made, but factors
            return self._engine.checksum
        return self._checksum(recipe, digests)

    def _take(self, recipe: Recipe, weights: np.ndarray) -> str:
        """Put flattened weights in place; return their checksum."""
        if self._flat is None:
            live = self._live_model
            if live is None:
                raise CandidateFailure(f"the engine {self._plan.engine} takes no evolved weights")
            self._flat = FlatWeights(live, self._sources[recipe.sources[0]])
        digests = self._flat.load(weights)
        return self._checksum(recipe, digests)

    def _checksum(self, recipe: Recipe, digests: Mapping[str, np.ndarray]) -> str:
        checksum, dtypes = Checksum(), self._merger.dtypes(recipe)
        for name, shape in self._merger.shapes(recipe).items():
            checksum.add(name, getattr(torch, dtypes[name]), shape, digests[name])
        return checksum.hexdigest()

    def _score(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Return objective -> (items,) float32 scores of the live model.

        Those that are judged have none: their questions are answered.
        """
        scores = {}
        asked = self._ask(wanted)
        # what measures answers comes after what is answered
        for objective in sorted(wanted, key=lambda name: bool(self._fitness[name].follows)):
            fitness, ordinals = self._fitness[objective], wanted[objective]
            if fitness.is_judged:
                continue
            seed_torch(0)  # a function that samples draws the same for every candidate
            with torch.inference_mode():
                items = fitness.scores(ordinals) if objective in asked else fitness.score(ordinals)
            if not np.isfinite(items).all():
                first = int(np.flatnonzero(~np.isfinite(items))[0])
                raise CandidateFailure(f"{objective} scored {items[first]} on item {first}")
            scores[objective] = items
        return {objective: scores[objective] for objective in wanted if objective in scores}

    def _said(self, objective: str, ordinals: Sequence[int]) -> list[str]:
        """Return what the live model said to items of an objective that is judged."""
        texts = self._fitness[objective].answers(ordinals)
        assert texts is not None
        return texts

    def _ask(self, wanted: Mapping[str, tuple[int, ...]]) -> set[str]:
        """Have the tasks' questions answered, those of all at once; return whose they were."""
        asked, questions = self._questions(wanted)
        seed_torch(0)  # a task that samples draws the same for every candidate
        with torch.inference_mode():
            for model, requests in questions:
                answer(model, requests)
        return asked

    def _questions(
        self, wanted: Mapping[str, tuple[int, ...]]
    ) -> tuple[set[str], list[tuple[Any, list[Any]]]]:
        """Return the objectives that ask lm-eval's questions, and these by who answers them."""
        asked = set()
        by_model: dict[int, tuple[Any, list[Any]]] = {}
        for objective, ordinals in wanted.items():
            questions = self._fitness[objective].questions(ordinals)
            if questions is not None:
                model, requests = questions
                by_model.setdefault(id(model), (model, []))[1].extend(requests)
                asked.add(objective)
        return asked, list(by_model.values())

    def answer_seconds(
        self, recipe: Recipe, wanted: Mapping[str, tuple[int, ...]]
    ) -> dict[str, float]:
        """Return how long its engine takes to answer, by kind of request.

        Args:
            recipe: whose model answers.
            wanted: objective -> ordinals of the items that are asked.

        Returns:
            Kind of request, as lm-eval calls it -> seconds; under `UPDATE`, those in which the
            engine takes other weights. What is quick is done twice, and the second counts.
        """
        found = {UPDATE: _seconds(lambda: self._materialize(recipe))}
        _, questions = self._questions(wanted)
        with torch.inference_mode():
            for model, requests in questions:
                by_kind: dict[str, list[Any]] = {}
                for request in requests:
                    by_kind.setdefault(request.request_type, []).append(request)
                for kind, alike in by_kind.items():
                    ask = functools.partial(answer, model, alike)
                    found[kind] = found.get(kind, 0.0) + _seconds(ask)
        return found

    def _answers(self, side: str) -> dict[str, list[str]]:
        answers = {}
        for objective, ordinals in self._ordinals(side).items():
            texts = self._fitness[objective].answers(ordinals)
            if texts is not None:
                answers[objective] = texts
        return answers

    def _ordinals(self, side: str) -> dict[str, tuple[int, ...]]:
        """Return objective -> ordinals of a side; an objective may hold nothing out."""
        every = {objective: self._plan.splits[objective].of(side) for objective in self._fitness}
        return {objective: ordinals for objective, ordinals in every.items() if ordinals}


def _open_sources(plan: WorkerPlan) -> dict[str, Source]:
    """Open the sources, and check that they are those that were hashed."""
    sources = {}
    for name, place in plan.sources.items():
        source = open_source(place, plan.trust)
        found = digest(source).sha256
        if found != plan.hashes[name]:
            hashes = f"sha256 {found[:12]} on {platform.node()}, and {plan.hashes[name][:12]}"
            raise SourceChanged(f"{source.place} has changed: {hashes} when it was hashed")
        sources[name] = source
    return all_aligned(sources)


def _seconds(act: Callable[[], object]) -> float:
    """Return how long something takes; what is quick is done twice, and the second counts."""
    began = time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    if seconds > _QUICK:
        return seconds
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _told(error: BaseException) -> str:
    """Return an error's traceback as it is printed."""
    return "".join(traceback.format_exception(error)).rstrip()


def _drop_frames(error: BaseException) -> None:
    """Forget where an error and its causes came from: the frames hold tensors."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__


def spare_collector() -> None:
    """Take all that lives now out of Python's garbage collection, until `gc.unfreeze`.

    A prepared worker's libraries and requests are half a million objects, which the collector would
    walk through several times for each candidate (https://docs.python.org/3/library/gc.html).

    >>> spare_collector()
    >>> gc.get_freeze_count() > 0
    True
    >>> gc.unfreeze()
    """
    gc.collect()  # what is garbage would be kept too
    gc.freeze()


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
