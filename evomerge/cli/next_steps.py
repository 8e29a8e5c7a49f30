"""What is to be done next with a campaign file."""

import shlex
from collections.abc import Sequence
from pathlib import Path


def next_steps(file: Path, name: str) -> str:
    """Return the commands from a campaign file to a merged model, with what each does.

    >>> print(next_steps(Path("mine.yaml"), "mine"))
    Next:
      evomerge check mine.yaml              what is wrong with it, and what it will need
      evomerge run mine.yaml                searches; Ctrl-C stops it, the same command goes on
      evomerge status runs/mine             how far it is, from another shell
      evomerge front runs/mine              the best merges beside the sources, held out
      evomerge export runs/mine merged/     the best merge as a Hugging Face directory
    """
    run = f"runs/{name}"
    steps = [
        (["check", str(file)], "what is wrong with it, and what it will need"),
        (["run", str(file)], "searches; Ctrl-C stops it, the same command goes on"),
        (["status", run], "how far it is, from another shell"),
        (["front", run], "the best merges beside the sources, held out"),
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
