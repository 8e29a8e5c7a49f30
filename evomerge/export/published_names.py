"""Models' names as they may leave this machine: by the hub's ids, or by the campaign's labels.

A directory that `evomerge export` writes is for its own machine: its recipe names models by where
they lie. Before a directory is sent away, these names are replaced in what evomerge wrote, and all
that is to be sent is searched for folders of this machine and for the token.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import SourceRecord
from evomerge.archive.references import read_candidate
from evomerge.errors import BadInput, EvomergeError
from evomerge.export.hub_ids import published
from evomerge.export.whole_recipes import of_this_run
from evomerge.sources.hub_upload import known_tokens
from evomerge.sources.source import is_candidate

_TEXTS = {".json", ".md", ".yml", ".yaml", ".txt", ".jinja", ".py"}
_WRITTEN = ("README.md", "recipe.json", "mergekit_config.yml", "adapter_config.json")
_HISTORY = ("_name_or_path", "name_or_path")  # keys by which transformers' files say where they lay


def published_names(archive: ArchiveReader) -> dict[str, str]:
    """Return what each source of a run is called elsewhere, and each source of its candidates.

    Args:
        archive: of the run.

    Returns:
        Name -> the hub's id, with the revision where it is known, or the source's label.

    >>> from evomerge.testing.archives import example_archive
    >>> published_names(example_archive())
    {'models/ja': 'ja', 'models/maths': 'maths'}
    """
    names: dict[str, str] = {}
    hashes: dict[str, str] = {}  # by label: runs within runs may use one for another model
    for source in _all_sources(archive):
        label, number = source.label, 2
        while hashes.setdefault(label, source.sha256) != source.sha256:
            label, number = f"{source.label}-{number}", number + 1
        names.setdefault(source.name, published(source.name, source.path) or label)
    return names


def _all_sources(archive: ArchiveReader) -> Iterable[SourceRecord]:
    for source in archive.sources:
        yield source
        if is_candidate(source.name):
            with contextlib.suppress(BadInput):  # a run that is gone: the label is all there is
                inner, _ = read_candidate(of_this_run(archive, source.name) or source.name)
                with contextlib.closing(inner):
                    if inner.path != archive.path:
                        yield from _all_sources(inner)


def rename_models(folder: Path, names: Mapping[str, str]) -> None:
    """Replace models' names in what evomerge wrote into a model's directory.

    Args:
        folder: of the model.
        names: see `published_names`; a name that is none of these becomes "a model".

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "recipe.json")
    ...     _ = file.write_text('{"models": ["models/ja", "/home/me/x"], "base": null}')
    ...     rename_models(Path(folder), {"models/ja": "ja"})
    ...     json.loads(file.read_text())
    {'models': ['ja', 'a model'], 'base': None}
    """
    _rewrite(folder / "recipe.json", lambda data: _renamed_recipe(data, names))
    _rewrite(folder / "adapter_config.json", _without_folder)
    for file in folder.glob("*config.json"):
        _rewrite(file, _without_history)
    mergekit = folder / "mergekit_config.yml"
    if mergekit.is_file():
        data = _renamed_everywhere(yaml.safe_load(mergekit.read_text()), names)
        mergekit.write_text(yaml.safe_dump(data, sort_keys=False, width=100))


def _rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    """Change a file of JSON, if it is there; one that nothing changes stays as it is."""
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        after = change(before)
        if after != before:
            file.write_text(json.dumps(after, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _renamed_recipe(data: Any, names: Mapping[str, str]) -> Any:
    """Return a recipe's JSON with other names of models, in recipes within it too."""
    if isinstance(data, str):
        return names.get(data, "a model")
    if not isinstance(data, Mapping):
        return data
    renamed = dict(data)
    renamed["models"] = [_renamed_recipe(model, names) for model in data["models"]]
    for key in ("base", "first"):
        if key in data:
            renamed[key] = _renamed_recipe(data[key], names)
    return renamed


def _renamed_everywhere(data: Any, names: Mapping[str, str]) -> Any:
    if isinstance(data, Mapping):
        return {key: _renamed_everywhere(value, names) for key, value in data.items()}
    if isinstance(data, list):
        return [_renamed_everywhere(value, names) for value in data]
    return names.get(data, data) if isinstance(data, str) else data


def _without_folder(data: Any) -> Any:
    """Return adapter_config.json without a base that is a folder here."""
    base = data.get("base_model_name_or_path")
    if isinstance(base, str) and not published(base):
        return {**data, "base_model_name_or_path": None}
    return data


def _without_history(data: Any) -> Any:
    if not isinstance(data, Mapping):
        return data
    return {key: value for key, value in data.items() if key not in _HISTORY}


def check_secrets(folder: Path, files: Iterable[str], places: Iterable[str]) -> None:
    """Refuse to send what names a folder of this machine, or holds the token.

    Args:
        folder: of the model.
        files: that are to be sent, by their names within it.
        places: folders that no text of evomerge's may name.

    Raises:
        EvomergeError: a file does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "README.md").write_text("made in /home/me/models")
    ...     check_secrets(Path(folder), ["README.md"], ["/home/me/models"])
    Traceback (most recent call last):
    evomerge.errors.EvomergeError: README.md names a folder of this machine ('/home/me/models'), ...
    """
    # a place that is no path, such as a label, may well be a word of a text
    tokens = known_tokens()
    paths = sorted({place for place in places if os.sep in place and len(place) > 1})
    for name in files:
        if Path(name).suffix not in _TEXTS:
            continue
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        if any(token in text for token in tokens):
            raise EvomergeError(f"{name} holds the hub's token, so nothing was pushed")
        for path in paths if name in _WRITTEN else ():
            if path in text:
                wrong = f"{name} names a folder of this machine ({path!r})"
                raise EvomergeError(f"{wrong}, so nothing was pushed")
