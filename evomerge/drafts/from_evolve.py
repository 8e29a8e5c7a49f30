"""A configuration of mergekit-evolve as a campaign file over the same space.

Everything that the configuration names is opened, models by their headers and tasks by their
items: what is written passes `evomerge check`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.campaign.build import checked_campaigns
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.named_sources import open_sources
from evomerge.config.parts import SourcesSection
from evomerge.config.validate import checked_plan
from evomerge.drafts.campaign_text import Draft
from evomerge.drafts.command_line import INSTEAD, CommandLine
from evomerge.drafts.evolve_tasks import ConvertedTasks, convert_tasks
from evomerge.drafts.labels import labels_of, plain
from evomerge.errors import BadInput, Fault, Faults, placed
from evomerge.mergekit.evolve_form import GenomeForm, read_evolve
from evomerge.mergekit.evolve_space import EvolveSpace, evolve_space
from evomerge.sources.compatibility import mismatches
from evomerge.sources.source import Source
from evomerge.sources.tokenizer import has_chat_template
from evomerge.yaml_file import read_yaml


@dataclass(frozen=True)
class Converted:
    """A campaign file, and what is to be said of it.

    Attributes:
        draft: the file.
        differs: what is not as in mergekit-evolve, one line each.
        genes: of the search.

    >>> Converted(Draft({"name": "mine"}), [], genes=3).draft.text
    'name: mine\\n'
    """

    draft: Draft
    differs: list[str]
    genes: int


@dataclass(frozen=True)
class _Models:
    """The sources, opened; `merged` are the names of those that are merged."""

    sources: SourcesSection
    merged: list[str]
    opened: dict[str, Source]

    @property
    def frame(self) -> Source:
        return next(iter(self.opened.values()))


def from_evolve(file: Path, options: CommandLine, name: str | None = None) -> Converted:
    """Return a mergekit-evolve configuration as a campaign.

    Args:
        file: the YAML.
        options: of mergekit-evolve's command line.
        name: of the campaign; the file's by default.

    Raises:
        BadInput: with every fault, keys those of the configuration.

    >>> from_evolve(Path("nowhere.yml"), CommandLine())
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere.yml: cannot be read (No such file or directory); check the ...
    """
    data = read_yaml(file)
    with placed(file=str(file)):
        form, differs = read_evolve(data)
        faults = Faults()
        with faults.gather("genome"):
            models = _open_models(form.genome, options, differs)
            frame = models.frame
            space = evolve_space(form.genome, models.merged, frame.layers, frame.tensors)
            differs += space.differs
        chat = form.apply_chat_template
        if not faults and chat and not has_chat_template(models.frame.path):
            chat = False
            differs.append(
                f"apply_chat_template: '{models.frame.name}', whose tokenizer merges get, has no"
                " chat template; prompts are as they are"
            )
        with faults.gather():
            tasks = convert_tasks(form, options, chat)
            differs += tasks.differs
        faults.check()
        draft = _draft(name or plain(file.stem), models, space, tasks, options)
        _say_of_search(form.random_init, draft, options, tasks, differs)
        campaign = _checked(draft.mapping, models)
    draft.header = [
        f"From {file.name} of mergekit-evolve by `evomerge convert`. What is not as there:",
        *(f"- {line}" for line in differs),
    ]
    return Converted(draft, differs, campaign.space.dimension)


def _open_models(genome: GenomeForm, options: CommandLine, differs: list[str]) -> _Models:
    """Return the models, and say which of them have no part in the merge.

    Raises:
        BadInput: keys below genome.
    """
    base, merged = genome.base_model, list(dict.fromkeys(genome.models))
    takes_base = genome.merge_method in ("ties", "dare_ties", "task_arithmetic")
    if len(merged) < len(genome.models):
        raise BadInput(Fault("models", "lists a model twice", "leave one out"))
    if takes_base and base in merged:
        merged.remove(base)
        differs.append(
            f"genome.models: {base} is the base too, so that its task vector is zero and its genes"
            " changed nothing; they are left out"
        )
    if base is not None and not takes_base:
        if base not in merged:
            differs.append(
                f"genome.base_model: {genome.merge_method} merges the models that are listed; the"
                " base, for which mergekit-evolve has no gene, is left out"
            )
        base = None
    if not merged:
        raise BadInput(Fault("models", "there is none beside the base", "list the fine-tunes"))
    labels = labels_of(merged)
    named = dict(zip(labels, merged, strict=True))
    sources = SourcesSection(base=base, models=named, trust_remote_code=options.trust_remote_code)
    faults = Faults()
    opened = open_sources(sources, {}, faults)
    if not faults:
        faults.extend(mismatches(list(opened.values())), "sources")
    numbers = {label: genome.models.index(model) for label, model in named.items()}
    found = [_as_theirs(fault, numbers, "") for fault in faults.found]
    if found:
        raise BadInput(*found)
    models = _Models(sources, merged, opened)
    chosen = (genome.tokenizer_source or "").removeprefix("model:")
    if chosen not in ("", "base", models.frame.name):
        differs.append(
            f"genome.tokenizer_source: the merged model gets the tokenizer of {models.frame.name};"
            " all models have the same vocabulary"
        )
    return models


# key of a campaign -> option of mergekit-evolve that it comes from
_OPTIONS = {
    "workers.engine": "--vllm",
    "workers": "--num-gpus",
    "budget.hours": "--timeout",
    "budget": "--max-fevals",
    "controller.population": "--force-population-size",
    "controller": "--sigma0",
    "seed": "--random-seed",
    "name": "--name",
}


def _as_theirs(fault: Fault, numbers: Mapping[str, int], genome: str = "genome.") -> Fault:
    """Return a campaign's fault as one of the configuration.

    Args:
        fault: of the campaign.
        numbers: label of a model -> where it stands in genome.models.
        genome: what is before the keys of the genome.
    """
    words = fault.key.split(".")
    key = _OPTIONS.get(fault.key, _OPTIONS.get(words[0], fault.key))
    if words[0] == "sources":
        key = f"{genome}models"
        if words[1:2] == ["base"]:
            key = f"{genome}base_model"
        elif words[1:2] == ["models"] and len(words) > 2:
            key = f"{genome}models.{numbers['.'.join(words[2:])]}"
    elif words[0] == "fitness" and len(words) > 1:
        key = ".".join(["tasks", *words[1:]])
    elif words[0] == "space":
        key = "genome"
    return Fault(key, fault.wrong, fault.mend)


def _draft(
    name: str,
    models: _Models,
    space: EvolveSpace,
    tasks: ConvertedTasks,
    options: CommandLine,
) -> Draft:
    """Return the campaign; `space`'s comments are beside what they are of."""
    sources: dict[str, Any] = {"models": models.sources.models}
    if models.sources.base is not None:
        sources = {"base": models.sources.base, **sources}
    if options.trust_remote_code:
        sources["trust_remote_code"] = True
    controller: dict[str, Any] = {"kind": "cmaes", "sigma": round(options.sigma0 * space.sigma, 6)}
    if options.population is not None:
        controller["population"] = options.population
    baselines = len(models.opened) + 1  # the sources and their average
    mapping: dict[str, Any] = {
        "name": name,
        "seed": options.seed,
        "sources": sources,
        "space": space.space,
        "controller": controller,
        "fitness": tasks.entries,
        "heldout": 0.5,
        "budget": {"items": (options.max_fevals + baselines) * tasks.search_items},
    }
    if options.seconds is not None:
        mapping["budget"]["hours"] = round(options.seconds / 3600, 4)
    mapping["workers"] = _workers(options)
    if options.allow_benchmarks:
        mapping["allow_benchmarks"] = True
    each = f"{options.max_fevals} candidates and {baselines} baselines x {tasks.search_items} items"
    comments = {
        "name": f"the run will be in runs/{name}",
        "controller": f"--sigma0 {options.sigma0:g} is this share of the first axis' range",
        "heldout": "the share of the items that the search never sees",
        "budget": f"--max-fevals: {each}",
        "workers": "on 8 GPUs: {pool: ray, count: 8, gpus_each: 1}",
        **{f"space.{key}": said for key, said in space.comments.items()},
    }
    if options.num_gpus:
        comments["workers"] = "--num-gpus"
    return Draft(mapping, comments)


def _workers(options: CommandLine) -> dict[str, Any]:
    workers: dict[str, Any] = {"pool": "inline"}
    if options.num_gpus:
        workers = {"pool": "ray", "count": options.num_gpus, "gpus_each": 1}
    if options.vllm:
        workers["engine"] = "vllm"
    return workers


def _say_of_search(
    random_init: bool,
    draft: Draft,
    options: CommandLine,
    tasks: ConvertedTasks,
    differs: list[str],
) -> None:
    """Add what is searched otherwise, and what became of options that have no key."""
    if random_init:
        differs.append("random_init: the search begins at equal weights, and not at random")
    differs.append(
        "items: mergekit-evolve chooses the best by the very items that it searched on; here half"
        " of each task's are held out, and the best is scored on those too"
    )
    differs.append(
        f"--max-fevals: most candidates are scored on a part of the {tasks.search_items} items, so"
        f" that there are more than {options.max_fevals} of them for as many scored items; to score"
        " each on all of them, write scoring: full"
    )
    differs.append(
        "CMA-ES begins anew, with a larger population, when it has converged; there it ends"
    )
    differs.append(
        "merges are computed in float32 and rounded once; mergekit rounds task vectors to bfloat16"
    )
    if not options.num_gpus:
        differs.append(
            "--num-gpus: there is one worker, in the process of `evomerge run`; mergekit-evolve"
            " takes all GPUs there are"
        )
    differs += [f"--{name}: {INSTEAD[name]}" for name in options.others]


def _checked(mapping: Mapping[str, Any], models: _Models) -> Campaign:
    """Open the campaign as `evomerge check` does.

    Raises:
        BadInput: keys those of the configuration.
    """
    numbers = {label: number for number, label in enumerate(models.sources.models)}
    try:
        (campaign,) = checked_campaigns(checked_plan(mapping))
    except BadInput as error:
        raise BadInput(*_allowing(error.faults, numbers)) from None
    return campaign


def _allowing(faults: Sequence[Fault], numbers: Mapping[str, int]) -> list[Fault]:
    """Return a campaign's faults as the configuration's, mended by its command line's options."""
    found = []
    for fault in faults:
        own = _as_theirs(fault, numbers)
        if "public benchmark" in fault.wrong:
            mend = "take a task of your own, or give"
            mend += " --i-understand-the-depths-of-the-evils-i-am-unleashing"
            own = Fault(own.key, fault.wrong, mend)
        found.append(own)
    return found
