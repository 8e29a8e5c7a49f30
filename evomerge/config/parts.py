"""The parts of a campaign file as typed sections.

Spaces, controllers and fitnesses are unions of the sections that the packages beside this one
register: a new one is known here as soon as its file is there.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import BeforeValidator, Field, model_validator

from evomerge.config.source_parts import part_faults
from evomerge.errors import Fault
from evomerge.learning.learners import LEARNERS, LearnerSection
from evomerge.recipes.soups import SOUPS
from evomerge.registry import Registry
from evomerge.scoring.parts import BatchesSection, FullSection, by_name
from evomerge.search.controllers import CONTROLLERS, ControllerSection
from evomerge.search.controllers.cmaes import CmaEsSection
from evomerge.search.spaces import SPACES, SpaceSection
from evomerge.sections import Flag, Number, Section, Text, Whole, one_of, option, refuse
from evomerge.sources.evidence import Evidence, split_evidence
from evomerge.sources.named_parts import TRUNK, with_parts
from evomerge.tracking import TRACKERS, TrackerSection

# Letters, digits, '.', '-' and '_', a letter or digit first: names of folders and of columns.
PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Soup = Literal["model_stock", "metrics", "greedy", "soce"]
KEPT_LABELS = ("base", "baseline", "uniform", *SOUPS)  # what models and stages cannot be called


def _scoring_kind(value: Any) -> str:
    kind = value.get("kind", "batches") if isinstance(value, Mapping) else "batches"
    return kind if kind in ("batches", "full") else "batches"


def any_registered(registry: Registry[Any]) -> Any:
    """Return the union of the sections of all that a registry has, told apart by `kind`.

    >>> from evomerge.sections import parse
    >>> parse(any_registered(CONTROLLERS), {"kind": "random"})
    RandomSection(kind='random')
    """
    sections = tuple(entry.section for entry in registry.all().values())
    return Annotated[Union[sections], Field(discriminator="kind")]  # noqa: UP007


if TYPE_CHECKING:
    AnySpace = SpaceSection
    AnyController = ControllerSection
    AnyScoring = BatchesSection | FullSection
    AnyTracker = TrackerSection
    AnyLearner = LearnerSection
else:
    AnySpace = any_registered(SPACES)
    AnyController = any_registered(CONTROLLERS)
    AnyScoring = Annotated[
        one_of({"batches": BatchesSection, "full": FullSection}, _scoring_kind),
        BeforeValidator(by_name),
    ]
    AnyLearner = Annotated[any_registered(LEARNERS), BeforeValidator(by_name)]
    _TRACKERS = {name: cls.section for name, cls in TRACKERS.all().items()}
    AnyTracker = Annotated[
        Union[tuple(_TRACKERS.values())],  # noqa: UP007
        Field(discriminator="kind"),
        BeforeValidator(by_name),
    ]


def _model_name(value: Any) -> Any:
    """Write {model, adapter} as `model+adapter` and {factory, ...} as `factory@weights`.

    What is known of a model follows its name: {model, texts} is `model?texts=...`.
    """
    if not isinstance(value, Mapping):
        return value
    if "factory" in value:
        return _factory_name(value)
    known = [key for key in Evidence._fields if key in value]
    keys = {"model", "adapter", *known} if "adapter" in value else {"model", *known}
    is_right = set(value) == keys and len(keys) > 1
    if not is_right or not all(isinstance(name, str) and name for name in value.values()):
        mend = "a model with a LoRA adapter is {model: ..., adapter: ...}, one whose texts a method"
        refuse([Fault("", "is no model", f"{mend} reads {{model: ..., texts: FILE}}")])
    name = "+".join(value[key] for key in ("model", "adapter") if key in value)
    if known and "#" in name and not os.path.isdir(name):
        refuse([Fault("", f"'{name}' is a candidate, of which nothing else is known", _EXPORT)])
    return name + Evidence(**{key: value[key] for key in known}).suffix


def _factory_name(value: Mapping[str, Any]) -> str:
    factory, seed, weights = (value.get(key) for key in ("factory", "seed", "weights"))
    right = isinstance(factory, str) and ":" in factory
    right = right and set(value) <= {"factory", "seed", "weights"}
    if weights is None:
        right = right and isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    else:
        right = right and seed is None and isinstance(weights, str) and not weights.isdigit()
    if not right:
        mend = "a module is {factory: FILE.py:function, weights: FILE or seed: NUMBER}"
        refuse([Fault("", "is no module", mend)])
    return f"{factory}@{seed if weights is None else weights}"


ModelName = Annotated[Text, BeforeValidator(_model_name)]


_EXPORT = "export it, and write its directory"
_AT_ONCE = 8  # candidates of a worker whose engine holds several


class SourcesSection(Section):
    """The models that are merged.

    >>> SourcesSection(models={"ja": "models/ja"}).labels
    {'models/ja': 'ja'}
    """

    base: ModelName | None = option(
        "the common ancestor, where the method merges task vectors: a directory, a hub id with or"
        " without @revision, or an earlier candidate RUN#NUMBER",
        None,
        example="org/base-7b",
    )
    models: dict[Text, ModelName] = option(
        "label -> model, written as `base` is; with a LoRA adapter {model: ..., adapter: ...}, made"
        " by Python {factory: FILE.py:function, weights: FILE or seed: NUMBER}; with what methods"
        " read of it beside its weights {model: ..., texts: FILE}, or `inputs` or `moments`",
        least=1,
        example={"ja": "MODEL", "maths": "MODEL"},
    )
    heads: Literal["merge", "keep"] = option(
        "keep: of transformers models, merge the trunk alone; each model's own head is in"
        " `model.heads` of a Python fitness, and an export has the first model's or that of --head",
        "merge",
    )
    parts: list[Text] = option(
        "of pipelines of diffusers, the folders that are merged (by default the denoiser's), of"
        " single files, what names of tensors begin with; the rest is the first model's",
        factory=list,
        example=["unet", "text_encoder"],
    )
    trust_remote_code: Flag = option(
        "run code that comes with the models, where transformers does not know their type, and"
        " Python functions that made the models of earlier runs",
        False,
    )

    @model_validator(mode="after")
    def _name_parts(self) -> Self:
        """Let each model's name say which of its parts are merged; see `named_parts`."""
        wanted = (TRUNK,) if self.heads == "keep" else tuple(self.parts)
        named = {label: self._named(name, wanted) for label, name in self.models.items()}
        self.__dict__["models"] = named  # it is frozen from here on
        if self.base is not None:
            self.__dict__["base"] = self._named(self.base, wanted)
        return self

    @staticmethod
    def _named(name: str, wanted: tuple[str, ...]) -> str:
        is_candidate = "#" in split_evidence(name)[0]
        return name if is_candidate else with_parts(name, wanted)  # a candidate has its run's

    @property
    def labels(self) -> dict[str, str]:
        """Name -> label, the base first; the first is the frame of every merge."""
        labels = {self.base: "base"} if self.base else {}
        for label, name in self.models.items():
            labels.setdefault(name, label)
        return labels

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        yield from part_faults(fields)
        for label in set(KEPT_LABELS) & set(fields.get("models", ())):
            wrong = f"the label '{label}' is kept for a baseline"
            yield Fault(f"models.{label}", wrong, "rename the model")


class _CountedSection(Section):
    """What ends a search and can be counted in the archive."""

    items: Whole | None = option(
        "items scored on the search's side, baselines and confirmations included",
        None,
        unit="items",
        ge=1,
        example=30_000,
    )
    evaluations: Whole | None = option(
        "proposals of the controller; baselines, confirmations and finals are extra",
        None,
        unit="candidates",
        ge=1,
        example=300,
    )
    patience: Whole | None = option(
        "proposals without a better best, among the candidates that are scored in full, after which"
        " the search ends",
        None,
        unit="candidates",
        ge=1,
    )


class BudgetSection(_CountedSection):
    """How long the search goes on: until the first of these is spent; one is enough.

    >>> BudgetSection(items=30_000).hours is None
    True
    """

    hours: Number | None = option("wall time, added up over starts", None, unit="hours", gt=0)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        limits = ("items", "evaluations", "hours")
        if all(name in fields and fields[name] is None for name in limits):
            yield Fault("", "has no end", "write e.g. items: 30000, evaluations: 300 or hours: 8")


class StageBudgetSection(_CountedSection):
    """How long a stage goes on; not in hours, so that every resume changes over at one candidate.

    >>> StageBudgetSection(evaluations=100).evaluations
    100
    """

    hours: None = option("stages are counted in items or evaluations", None)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        if all(name in fields and fields[name] is None for name in ("items", "evaluations")):
            yield Fault("", "has no end", "write e.g. items: 30000 or evaluations: 300")


class WorkersSection(Section):
    """What scores the candidates, and how many at once.

    >>> WorkersSection(pool="ray", count=8, gpus_each=1).device
    'auto'
    """

    pool: Literal["inline", "ray"] = option(
        "inline: one worker in this process; ray: processes of their own, on this machine or on"
        " the cluster that RAY_ADDRESS names",
        "inline",
    )
    count: Whole = option("workers", 1, unit="workers", ge=1)
    gpus_each: Number = option(
        "GPUs that Ray reserves for each worker; several hold one model, spread over them",
        0.0,
        unit="GPUs",
        ge=0,
    )
    cpus_each: Number | None = option(
        "CPUs that Ray reserves for each worker; null: as many as threads, or the CPUs shared out",
        None,
        unit="CPUs",
        gt=0,
    )
    engine: Literal["transformers", "vllm", "auto", "vllm-lora"] = option(
        "what runs the merged models: transformers, or vLLM (the extra `vllm`), which generates"
        " many answers at once; auto: for each kind of question the one that answers it sooner,"
        " measured when the campaign begins; vllm-lora: vLLM with candidates as LoRA adapters of"
        " one base, where all sources are; it stays the same for a whole campaign",
        "transformers",
    )
    candidates_each: Whole | None = option(
        "candidates that a worker holds and scores at once, with the engine vllm-lora; null: 8",
        None,
        unit="candidates",
        ge=1,
    )
    quantize: Literal["int8", "int4"] | None = option(
        "score models as their linear weights are once they are quantized by torchao (the extra"
        " `quantize`), with one scale a row or, in four bits, 32 weights; what is merged, archived"
        " and exported is not quantized; it stays the same for a whole campaign",
        None,
    )
    threads: Whole | None = option(
        "torch threads of each worker; null: its machine's cores shared out", None, ge=1
    )
    device: Text = option("auto, cpu, cuda or cuda:NUMBER", "auto")
    sources_memory: Number | None = option(
        "how much of each worker's GPU the sources' weights may take; the rest is read from this"
        " machine's memory for every candidate; null: what there is room for",
        None,
        unit="GB",
        ge=0,
        example=40,
    )
    timeout: Number | None = option(
        "how long one candidate may take, of a worker in a process of its own",
        None,
        unit="seconds",
        gt=0,
    )
    start_timeout: Number | None = option(
        "how long a worker that starts may show no progress before it is tried again; null: for"
        " ever",
        1800.0,
        unit="seconds",
        gt=0,
    )

    @property
    def at_once(self) -> int:
        """How many candidates a worker scores at once."""
        return (self.candidates_each or _AT_ONCE) if self.engine == "vllm-lora" else 1

    @property
    def sources_bytes(self) -> int | None:
        """`sources_memory` in bytes."""
        return None if self.sources_memory is None else int(self.sources_memory * 1e9)

    @property
    def device_share(self) -> float:
        """Which share of a GPU a worker has, where there is one."""
        return min(1.0, self.gpus_each or 1.0 / self.count)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        device = fields.get("device", "auto")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            mend = "write auto, cpu, cuda or cuda:1"
            yield Fault("device", f"there is no device '{device}'", mend)
        engine = fields.get("engine", "transformers")
        if engine != "vllm-lora" and fields.get("candidates_each"):
            wrong = f"the engine {engine} holds one candidate at a time"
            yield Fault("candidates_each", wrong, "leave it out, or write engine: vllm-lora")
        if engine.startswith("vllm") and device.startswith("cuda:"):
            wrong = f"vLLM takes the first GPU that it sees, and not {device}"
            yield Fault("device", wrong, "write cuda, and set CUDA_VISIBLE_DEVICES")
        if engine != "transformers" and fields.get("quantize"):
            wrong = f"the engine {engine} takes weights as they are merged"
            yield Fault("quantize", wrong, "write engine: transformers, or leave it out")
        gpus = fields.get("gpus_each", 0.0)
        if gpus > 1 and engine not in ("transformers", "vllm"):
            wrong = f"with engine: {engine} a model lies on one GPU, and the others would be idle"
            mend = "write 1, and more in workers.count; or engine: transformers or vllm"
            yield Fault("gpus_each", wrong, mend)
        elif gpus > 1 and gpus != int(gpus):
            yield Fault("gpus_each", "a model is spread over whole GPUs", "write 2, 4 or 8")
        if fields.get("pool") != "inline":
            if gpus and device not in ("auto", "cuda"):
                wrong = f"a worker sees the GPU alone that Ray reserves for it, and no {device}"
                yield Fault("device", wrong, "write cuda, or leave out workers.gpus_each")
            return
        harmless_values = {"timeout": None, "start_timeout": 1800.0, "count": 1, "gpus_each": 0.0}
        for key, harmless in harmless_values.items():
            if fields.get(key, harmless) != harmless:
                wrong = f"the inline pool has one worker, in this process, and no {key}"
                yield Fault(key, wrong, "write workers.pool: ray")


class StageSection(Section):
    """One of several searches, each over the best that those before it found as well.

    >>> each = {"kind": "parameters", "method": "linear", "axes": {"weight": {"low": 0, "high": 1}}}
    >>> StageSection(name="first", space=each, budget={"evaluations": 9}).controller.kind
    'cmaes'
    """

    name: Text = option(
        "of the model that the stage finds, among later stages' sources", pattern=PLAIN_NAME
    )
    space: AnySpace = option("what is searched", example={"kind": "routing"})
    controller: AnyController = option("how it is searched", factory=CmaEsSection)
    budget: StageBudgetSection = option("how long", example={"evaluations": 300}, may_change=True)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        name = fields.get("name")
        if name in KEPT_LABELS:
            yield Fault("name", f"the name '{name}' is kept for a baseline", "rename the stage")
