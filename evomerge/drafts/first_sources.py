"""The sources of a first campaign, named one after the other."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from evomerge.errors import BadInput, Fault
from evomerge.sources.compatibility import mismatches
from evomerge.sources.locate import local_directory
from evomerge.sources.safetensors_file import read_json
from evomerge.sources.source import Source, open_source

_BASE_WORDS = r"(^|[-_.])(base|pretrained?|foundation|pt)([-_.]|$)"


class FirstSources:
    """Models that were named, each opened by its headers and held against the first.

    Attributes:
        opened: by name, in their order.

    >>> FirstSources().add("./nowhere")
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no directory './nowhere'; write a model directory ...
    """

    def __init__(self) -> None:
        self.opened: dict[str, Source] = {}

    def add(self, answer: str) -> list[str]:
        """Open a model, or all models in a folder; return a line on each.

        Args:
            answer: a directory, of a model, of a LoRA adapter, or of such directories; or a hub id.

        Raises:
            BadInput: it is none, or does not fit those before.
        """
        within = _models_within(answer)
        if not within:
            return [self._open(_with_its_base(answer))]
        lines = []
        for name in map(_with_its_base, within):
            if name in self.opened:
                continue
            try:
                lines.append(self._open(name))
            except BadInput as error:
                lines += [f"{name} is left out: {fault}" for fault in error.faults]
        return lines

    def _open(self, name: str) -> str:
        if name in self.opened:
            raise BadInput(Fault("", f"'{name}' is listed already", "name another one"))
        source = open_source(name, weights=False)
        if self.opened:
            first = next(iter(self.opened.values()))
            if wrong := mismatches([first, source]):
                raise BadInput(*wrong)
        self.opened[name] = source
        return f"{name}: {described(source)}"

    def base(self, answer: str) -> str | None:
        """Return the name of the base; None for an answer of "none".

        It need not be among the models.

        Raises:
            BadInput: it is no model, or does not fit the others.
        """
        if answer.strip().lower() in ("none", "-", "no"):
            return None
        if answer not in self.opened:
            self._open(answer)
        return answer


def described(source: Source) -> str:
    """Say how large a model is, and of what.

    >>> from evomerge.testing.campaigns import example_folder
    >>> described(open_source(str(example_folder() / "base")))
    'llama, 0.0 M parameters, 2 layers, bfloat16'
    """
    parameters = sum(tensor.elements for tensor in source.tensors.values())
    kind = source.config.get("model_type", "model")
    return f"{kind}, {parameters / 1e6:.1f} M parameters, {source.layers} layers, {source.dtype}"


def likely_base(names: Sequence[str]) -> str | None:
    """Return which of the models is the others' base, by their names; None if it is not plain.

    >>> likely_base(["models/ja", "models/base"]), likely_base(["org/L-8B-maths", "org/L-8B"])
    ('models/base', 'org/L-8B')
    >>> likely_base(["models/base+models/lora", "models/ja"])
    'models/base'
    """
    adapted = {name.rpartition("+")[0] for name in names if "+" in name}
    if len(adapted) == 1:
        return adapted.pop()
    ends = {name: PurePath(name.partition("@")[0]).name.lower() for name in names}
    said = [name for name, end in ends.items() if re.search(_BASE_WORDS, end)]
    if len(said) == 1:
        return said[0]
    begins = [
        name
        for name, end in ends.items()
        if len(names) > 1 and all(other.startswith(end) for other in ends.values())
    ]
    return begins[0] if len(begins) == 1 else None


def _models_within(answer: str) -> list[str]:
    """Return the models in a directory that is none itself."""
    directory = local_directory(answer)
    if directory is None or _is_model(directory):
        return []
    return [str(path) for path in sorted(directory.iterdir()) if path.is_dir() and _is_model(path)]


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / "adapter_config.json").is_file()


def _with_its_base(name: str) -> str:
    """Write an adapter with the base that its config names, as sources are written."""
    directory = local_directory(name)
    if directory is None or (directory / "config.json").is_file():
        return name
    adapter = read_json(directory / "adapter_config.json")
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    return f"{base}+{name}" if isinstance(base, str) and base else name
