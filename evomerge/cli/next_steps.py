"""What is to be done next: with a campaign file, with a run, with a model."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from evomerge.archive.shapes import ProgressShape


def next_steps(file: Path, name: str) -> str:
    """Return the commands from a campaign file to a merged model, with what each does.

    >>> print(next_steps(Path("mine.yaml"), "mine"))
    Next:
      evomerge check mine.yaml              what is wrong with it, and what it will need
      evomerge run mine.yaml                searches; Ctrl-C stops it, the same command goes on
      evomerge status runs/mine             how far it is, from another shell
      evomerge front runs/mine              the best merges beside the sources, held out
      evomerge report runs/mine             a page with pictures of the search
      evomerge export runs/mine merged/     the best merge as a Hugging Face directory
    """
    run = f"runs/{name}"
    steps = [
        (["check", str(file)], "what is wrong with it, and what it will need"),
        (["run", str(file)], "searches; Ctrl-C stops it, the same command goes on"),
        (["status", run], "how far it is, from another shell"),
        (["front", run], "the best merges beside the sources, held out"),
        (["report", run], "a page with pictures of the search"),
        (["export", run, "merged/"], "the best merge as a Hugging Face directory"),
    ]
    return command_table([(["evomerge", *words], said) for words, said in steps])


def command_table(steps: Sequence[tuple[Sequence[str], str]]) -> str:
    """Return commands, one a line, with what is said of each.

    >>> print(command_table([(["evomerge", "list"], "what there is")]))
    Next:
      evomerge list     what there is
    """
    commands = [shlex.join(words) for words, _ in steps]
    wide = max(map(len, commands))
    said = [text for _, text in steps]
    lines = [f"  {c:{wide}}     {t}" for c, t in zip(commands, said, strict=True)]
    return "\n".join(["Next:", *lines])


def searching_on(progress: ProgressShape) -> str:
    """Say how a finished run goes on, "" where no single key says how long it may.

    >>> from evomerge.archive import summary
    >>> from evomerge.testing.archives import example_archive
    >>> print(searching_on(summary.snapshot(example_archive())))
    To search on: the same command with --set budget.evaluations=16
    """
    budget = progress["budget"]
    limits = {key: budget[key] for key in ("items", "evaluations", "hours")}
    for key, limit in limits.items():
        if limit and not progress["stages"]:
            return f"To search on: the same command with --set budget.{key}={2 * limit:g}"
    return ""


def continuing(
    file: Path,
    directory: Path | None,
    settings: Sequence[str],
    moved: Sequence[str],
    others: Sequence[str] = (),
) -> str:
    """Return the command that goes on with a campaign, with the options that it was started with.

    Args:
        file: of the campaign.
        directory: the run's, where it was named.
        settings: of `--set`.
        moved: of `--source`.
        others: options without values.

    >>> print(continuing(Path("mine.yaml"), None, ["budget.items=400"], [], ["--quiet"]))
    evomerge run mine.yaml --set budget.items=400 --quiet
    """
    words = ["evomerge", "run", str(file)]
    words += ["--run", str(directory)] if directory else []
    for setting in settings:
        words += ["--set", setting]
    for pair in moved:
        words += ["--source", pair]
    return shlex.join([*words, *others])


def loading(out: Path) -> str:
    """Say how an exported model is used.

    >>> print(loading(Path("merged")))
    It loads as any model: AutoModelForCausalLM.from_pretrained("merged"); see merged/README.md
    """
    from evomerge.sources.libraries import loading_call

    return f"It loads as any model: {loading_call(out)}; see {out / 'README.md'}"


def awaiting(progress: ProgressShape) -> str:
    """Say why there are no held-out scores yet, "" where there are some.

    >>> from evomerge.archive import summary
    >>> from evomerge.testing.archives import example_archive
    >>> awaiting(summary.snapshot(example_archive()))
    ''
    """
    if progress["items"]["heldout"] or progress["state"] == "finished":
        return ""
    return "Held-out scores are made when the search ends; till then nothing is known of them."
