"""The form of mergekit-evolve's YAML, as its version 0.1.5 reads it.

Keys that it does not know it reads past without a word, so that a slip changes what is searched.
They are told here, and left out as it does.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from evomerge.errors import BadInput, Fault, nearest
from evomerge.sections import Flag, Number, Section, Text, Whole, option, parse, refuse

# mergekit-evolve's method: its genes in their order, weights first
GENES: dict[str, tuple[str, ...]] = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}

NORMALIZED = ("linear", "ties", "dare_ties")  # by default, which for dare_ties is not mergekit's


def _model_name(value: Any) -> Any:
    """Write mergekit's mapping of a model as the text that it also takes."""
    if not isinstance(value, Mapping):
        return value
    model, adapter = value.get("model"), value.get("lora")
    names = [_at_revision(model)] + ([] if adapter is None else [_at_revision(adapter)])
    if not all(names) or value.keys() - {"model", "lora", "override_architecture"}:
        refuse([Fault("", "is no model", "write its directory or hub id")])
    return "+".join(map(str, names))


def _at_revision(value: Any) -> str | None:
    """Return a model's path, with its revision if it has one; None of what is none."""
    if isinstance(value, Mapping):
        path, revision = value.get("path"), value.get("revision")
        if value.keys() - {"path", "revision"} or not isinstance(path, str):
            return None
        return f"{path}@{revision}" if revision else path
    return value if isinstance(value, str) else None


def _known_method(name: str) -> str:
    if name not in GENES:
        refuse([Fault("", f"'{name}' is no method of mergekit-evolve", nearest(name, GENES))])
    return name


ModelName = Annotated[Text, BeforeValidator(_model_name)]


class GenomeForm(Section):
    """What is searched.

    >>> genome = {"models": ["a", "b"], "merge_method": "ties"}
    >>> parse(GenomeForm, genome)
    Traceback (most recent call last):
    evomerge.errors.BadInput: base_model: ties needs it; write the models' common ancestor
    """

    models: list[ModelName] = option("models", least=1, example=["models/a", "models/b"])
    merge_method: Annotated[Text, AfterValidator(_known_method)] = option(
        "of merging", example="ties"
    )
    base_model: ModelName | None = option("the models' common ancestor", None)
    tokenizer_source: Text | None = option("base, union, or a model", None)
    layer_granularity: Whole = option("layers that share values; 0: all", 0)
    normalize: Flag | None = option("weights; null: as the method has it", None)
    allow_negative_weights: Flag = option("else their absolute values count", False)
    filters: list[Text] | None = option("parts of tensor names with values of their own", None)
    smooth: Flag = option("values are interpolated over depth", False)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterator[Fault]:
        """See `Section.cross_faults`."""
        method = fields.get("merge_method")
        needs_base = method in ("ties", "dare_ties", "task_arithmetic")
        if needs_base and fields.get("base_model", ...) is None:
            yield Fault("base_model", f"{method} needs it", "write the models' common ancestor")
        for key in ("smooth", "filters"):
            if method == "slerp" and fields.get(key):
                yield Fault(key, "mergekit-evolve refuses it with slerp", "leave it out")
        if method == "slerp" and len(fields.get("models", (1, 2))) < 2:
            yield Fault("models", "slerp takes the best two of them", "list more")

    @property
    def is_normalized(self) -> bool:
        """Whether weights are divided by their sum."""
        return self.merge_method in NORMALIZED if self.normalize is None else self.normalize

    @property
    def genes(self) -> tuple[str, ...]:
        """The method's parameters that are searched, in their order."""
        return GENES[self.merge_method]


class TaskForm(Section):
    """One of the tasks, whose weighted metrics are added up.

    >>> parse(TaskForm, {"name": "gsm8k"}).metric
    'acc,none'
    """

    name: Text = option("lm-eval's", example="gsm8k")
    weight: Number = option("in the sum", 1.0)
    metric: Text = option("METRIC,FILTER", "acc,none")


def _task(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class EvolveForm(Section):
    """The YAML.

    >>> data = {"genome": {"models": ["a"], "merge_method": "linear"}, "tasks": ["gsm8k"]}
    >>> parse(EvolveForm, data).tasks[0].name
    'gsm8k'
    """

    genome: GenomeForm = option("what is searched")
    tasks: list[Annotated[TaskForm, BeforeValidator(_task)]] = option(
        "what is scored", least=1, example=[{"name": "gsm8k", "metric": "exact_match,strict-match"}]
    )
    limit: Whole | None = option("items of each task", None, ge=1)
    num_fewshot: Whole | None = option("worked examples", None, ge=0)
    shuffle: Flag = option("items are drawn, not the first", False)
    random_init: Flag = option("begin at random", False)
    apply_chat_template: Flag = option("to prompts", True)
    fewshot_as_multiturn: Flag = option("examples as turns of a chat", True)


def read_evolve(data: Any) -> tuple[EvolveForm, list[str]]:
    """Return what a mergekit-evolve configuration says, and lines on keys that it reads past.

    Args:
        data: the YAML's content.

    Raises:
        BadInput: with every fault of form.

    >>> genome = {"models": ["a", "b"], "merge_method": "linear", "normalise": True}
    >>> form, ignored = read_evolve({"genome": genome, "tasks": ["gsm8k"]})
    >>> ignored
    ["genome.normalise: mergekit-evolve reads past it, and so does this; did you mean 'normalize'?"]
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("genome"), Mapping):
        wrong = "is no configuration of mergekit-evolve, which has a genome and tasks"
        mend = "a configuration of mergekit-yaml is merged by: evomerge merge FILE OUT"
        raise BadInput(Fault("", wrong, mend if _lists_models(data) else "see mergekit's docs"))
    ignored: list[str] = []
    said = dict(_known(data, EvolveForm, "", ignored))
    said["genome"] = dict(_known(data["genome"], GenomeForm, "genome.", ignored))
    if isinstance(tasks := data.get("tasks"), list):
        said["tasks"] = [
            dict(_known(task, TaskForm, f"tasks.{number}.", ignored))
            if isinstance(task, Mapping)
            else task
            for number, task in enumerate(tasks)
        ]
    return parse(EvolveForm, said), ignored


def _lists_models(data: Any) -> bool:
    return isinstance(data, Mapping) and bool({"models", "slices", "modules"} & data.keys())


def _known(
    data: Mapping[str, Any], form: type[Section], under: str, ignored: list[str]
) -> Iterable[tuple[str, Any]]:
    """Yield the entries whose keys a form has, and note the others."""
    for key, value in data.items():
        if key in form.model_fields:
            yield key, value
            continue
        line = f"{under}{key}: mergekit-evolve reads past it, and so does this"
        mend = nearest(key, form.model_fields)
        ignored.append(f"{line}; {mend}" if mend.startswith("did") else line)
