"""What a shell completes: run directories, campaign files, candidates, keys of the campaign file.

Whatever goes wrong here goes wrong while somebody types: then nothing is completed.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

_CAMPAIGN_FILES = (".yaml", ".yml")
_DEEP = 3  # sections within sections whose keys are completed


class NamedPath(click.Path):
    """A path, completed by what its parameter is called: `directory` is a run's, `file` a campaign.

    >>> NamedPath(path_type=Path).convert("runs/demo", None, None)
    PosixPath('runs/demo')
    """

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return what fits; the shell's own files where nothing of ours does."""
        found: list[CompletionItem] = []
        with contextlib.suppress(OSError):
            if param.name == "directory":
                found = list(_paths(incomplete, runs=True))
            elif param.name == "file":
                found = list(_paths(incomplete, runs=False))
        return found or super().shell_complete(ctx, param, incomplete)


class Pick(click.ParamType):
    """A candidate, as `export --pick` and `show` name one.

    >>> Pick().convert("best", None, None)
    'best'
    """

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the words that pick, and those of the run that is named before."""
        picks = [("best", "of the highest value"), ("knee", "the front's best compromise")]
        # an option without its value yet leaves all that was typed unparsed
        for typed in (ctx.params.get("directory"), *ctx.args):
            if typed is not None and Path(typed, "archive.db").is_file():
                with contextlib.suppress(Exception):
                    picks += _picks_of(Path(typed))
                break
        return _items(picks, incomplete)


def complete_settings(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the dotted keys of a campaign file that begin so, for `--set`.

    >>> context = click.Context(click.Command("run"))
    >>> option = click.Option(["--set"])
    >>> [item.value for item in complete_settings(context, option, "budget.it")]
    ['budget.items=']
    """
    from evomerge.config.schema import CampaignPlan

    found: list[tuple[str, str]] = []
    with contextlib.suppress(Exception):
        found = list(_keys(CampaignPlan, ""))
    return _items(found, incomplete)


def _paths(incomplete: str, *, runs: bool) -> Iterator[CompletionItem]:
    """Yield the runs or the campaign files that begin so, and the folders on the way to them."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    before = incomplete[: len(incomplete) - len(Path(incomplete).name)]
    if incomplete.endswith("/") or not incomplete:
        before = incomplete
    for entry in sorted(folder.iterdir()):
        path = f"{before}{entry.name}"
        if not path.startswith(incomplete) or entry.name.startswith("."):
            continue
        if runs and (entry / "archive.db").is_file():
            yield CompletionItem(path)
        elif entry.is_dir() and (not runs or any(entry.glob("*/archive.db"))):
            yield CompletionItem(f"{path}/")
        elif not runs and entry.suffix in _CAMPAIGN_FILES:
            yield CompletionItem(path)


def _picks_of(directory: Path) -> Iterator[tuple[str, str]]:
    from evomerge.archive.summary import open_run

    with contextlib.closing(open_run(directory)) as archive:
        for objective in archive.objectives:
            yield objective.name, f"the front's best in {objective.name}"
        for number in archive.front():
            means = archive.means(number)
            yield str(number), ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())


def _keys(section: type, before: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of a section, and of the sections within."""
    from pydantic import BaseModel

    from evomerge.section_types import bare_kind, declared_kind

    assert issubclass(section, BaseModel)
    for name, field in section.model_fields.items():
        inner = bare_kind(declared_kind(field))
        yield f"{before}{name}=", field.description or ""
        is_section = isinstance(inner, type) and issubclass(inner, BaseModel)
        if is_section and before.count(".") < _DEEP:
            yield from _keys(inner, f"{before}{name}.")


def _items(found: Iterable[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word, help=text) for word, text in found if word.startswith(incomplete)]
