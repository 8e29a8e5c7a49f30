"""The tokenizer that a mergekit configuration asks for, beside the one that its merge gets here.

The weights do not hang on it: evomerge merges models of one vocabulary. What differs is the files.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import BadInput
from evomerge.mergekit.form import Configuration
from evomerge.recipes.recipe import Recipe
from evomerge.sources.locate import locate
from evomerge.sources.safetensors_file import read_json
from evomerge.yaml_file import MOST_JSON, read_text

log = logging.getLogger("evomerge")


def chat_template(path: Path) -> object:
    """Return what a model directory has for a chat template, None if it has none.

    >>> chat_template(Path("nowhere")) is None
    True
    """
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return read_text(file, MOST_JSON)
        except (OSError, ValueError):
            return None
    settings = read_json(path / "tokenizer_config.json")
    return settings.get("chat_template") if isinstance(settings, dict) else None


def warn_of_tokenizer(configuration: Configuration, recipe: Recipe) -> None:
    """Say it where the merge gets other tokenizer files than mergekit would give it.

    Args:
        configuration: mergekit's.
        recipe: that it describes, whose models can be had.

    >>> from evomerge.mergekit.form import read_configuration
    >>> from evomerge.recipes.parameters import uniform
    >>> plain = read_configuration({"merge_method": "linear", "models": [{"model": "a"}]})
    >>> warn_of_tokenizer(plain, uniform(("a",), "float32"))
    """
    taken = recipe.sources[0]
    if configuration.tokenizer not in (None, taken):
        log.warning(
            "the merged model gets the tokenizer's files of %s, not of %s, which has the same"
            " vocabulary",
            *(taken, configuration.tokenizer),
        )
    asked = configuration.chat_template
    if asked is None or (asked == "auto" and _have_one_template(recipe.sources)):
        return
    log.warning("chat_template is not done: the merged model keeps that of %s", taken)


def _have_one_template(names: Sequence[str]) -> bool:
    found = []
    for name in names:
        model, plus, _ = name.rpartition("+")  # before an adapter, if it is no directory's own
        try:
            found.append(chat_template(locate(model if plus and not Path(name).is_dir() else name)))
        except BadInput:  # it is said when it is merged
            return True
    return all(template == found[0] for template in found)
