"""What the models' own cards say that a merge of them inherits: licence, languages, data sets.

A card is README.md in a model's directory, whose YAML head the hub reads
(https://huggingface.co/docs/hub/model-cards). It may be a stranger's: what is not of the form that
the hub takes counts as not said.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evomerge.sources.libraries import library_of
from evomerge.sources.safetensors_file import read_json

GENERATION = "text-generation"  # the hub's name of what causal language models do

_LARGEST = 5_000_000  # bytes of a card that is read

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_LICENSE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,+()_-]{0,95}")
_LICENSE_LINK = re.compile(r"https?://[A-Za-z0-9][^\s<>\"'\\]{0,400}|[A-Za-z0-9][A-Za-z0-9._-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")  # BCP 47, as far as the hub has it
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


class Inherited(NamedTuple):
    """What the card of a merge takes from its sources' cards.

    Attributes:
        license: the keys `license`, `license_name` and `license_link` of the head; empty where the
            sources do not agree.
        doubt: why the licence is not known, as a sentence; "" if it is.
        languages: of all sources, as codes.
        datasets: that any source names, as ids of the hub.
        pipeline: what the models do, as the hub calls it; "" if that is not known.
        library: that loads them, as the hub calls it; "" of files that none has made.

    >>> Inherited({"license": "apache-2.0"}).doubt
    ''
    """

    license: Mapping[str, str] = {}
    doubt: str = ""
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    pipeline: str = ""
    library: str = "transformers"


def inherited(places: Mapping[str, Iterable[Path]]) -> Inherited:
    """Read the cards of models, and return what a merge of them inherits.

    Args:
        places: label -> the directory of a model, and that of its adapter; the first model's
            config.json says what they do.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     card = Path(folder, "README.md")
    ...     _ = card.write_text("---\\nlicense: mit\\nlanguage: ja\\n---\\n")
    ...     both = inherited({"ja": [Path(folder)], "maths": [Path("nowhere")]})
    >>> both.license, both.doubt, both.languages
    ({}, 'no licence is known of maths', ['ja'])
    """
    licenses: dict[str, dict[str, str]] = {}
    languages: list[str] = []
    datasets: list[str] = []
    pipeline = library = None
    for label, folders in places.items():
        for number, folder in enumerate(folders):
            head = head_of_card(folder)
            pipeline = _pipeline(folder) if pipeline is None else pipeline
            library = library_of(folder) if library is None else library
            licenses[label if not number else f"{label}'s adapter"] = _license(head)
            languages += _words(head.get("language"), _LANGUAGE)
            datasets += _words(head.get("datasets"), _DATASET)
    license, doubt = _common(licenses)
    return Inherited(
        license,
        doubt,
        list(dict.fromkeys(languages)),
        list(dict.fromkeys(datasets)),
        pipeline or "",
        "transformers" if library is None else library,
    )


def _pipeline(folder: Path) -> str:
    """Return what a model does that config.json names as a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json(folder / "config.json")
    listed = config.get("architectures") if isinstance(config, dict) else None
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    for name in listed if isinstance(listed, list) else []:
        if isinstance(name, str) and (name in known or name.endswith("ForCausalLM")):
            return GENERATION
    return ""


def _common(licenses: Mapping[str, dict[str, str]]) -> tuple[dict[str, str], str]:
    """Return the licence that all have, or none and why not."""
    unknown = [label for label, license in licenses.items() if not license]
    if len(unknown) == len(licenses):
        return {}, "no licence is known of any source"
    if unknown:
        return {}, f"no licence is known of {', '.join(unknown)}"
    first = next(iter(licenses.values()))
    if any(license != first for license in licenses.values()):
        said = [f"{label} {' '.join(license.values())}" for label, license in licenses.items()]
        return {}, f"the sources have different licences ({', '.join(said)})"
    return first, ""


def _license(head: Mapping[str, Any]) -> dict[str, str]:
    """Return a card's keys of its licence, or none where it is not of the hub's form."""
    listed = _words(head.get("license"), _LICENSE)
    if len(listed) != 1:
        return {}
    found = {"license": listed[0]}
    if listed[0] == "other":
        for key, form in (("license_name", _LICENSE_NAME), ("license_link", _LICENSE_LINK)):
            if words := _words(head.get(key), form):
                found[key] = words[0]
        if len(found) == 1:  # two that are `other` and no more may be any two
            return {}
    return found


def _words(said: Any, form: re.Pattern[str]) -> list[str]:
    """Return the texts of a value that is one or a list of them, those alone of a form."""
    listed = said if isinstance(said, list) else [said]
    return [word for word in listed if isinstance(word, str) and form.fullmatch(word)]


def head_of_card(folder: Path) -> Mapping[str, Any]:
    """Return the head of a directory's card; empty where there is none that can be read.

    >>> head_of_card(Path("nowhere"))
    {}
    """
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    try:
        if not card.is_file() or card.stat().st_size > _LARGEST:
            return {}
        return metadata_load(card) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
