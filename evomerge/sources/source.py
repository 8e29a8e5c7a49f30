"""Sources: Hugging Face model directories, with or without a LoRA adapter, by their headers.

Everything here is torch-free. Opening a source reads config.json, the tokenizer's
vocabulary and the headers; `digest` is the one pass over its weights. A source with an
adapter is written `model+adapter`, as mergekit does.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, Fault, nearest, one_line
from evomerge.sources.factory import Factory, build, parse_factory, state_of, weights_file
from evomerge.sources.lora import Adapter, open_adapter
from evomerge.sources.safetensors_file import PICKLES, Tensor, read_header, read_json, shards
from evomerge.tensor_names import canonical_order, count_layers

# What a config says of its own history, not of the model.
CONFIG_NOISE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "factory"}


@dataclass(frozen=True)
class Source:
    """An opened model directory, and perhaps an adapter of it.

    `name` is what the user wrote; `tensors` are the model's, in canonical order.
    """

    name: str
    path: Path
    config: dict
    tensors: dict[str, Tensor]
    vocabulary: dict[str, int] = field(repr=False)
    adapter: Adapter | None = None
    factory: Factory | None = None

    @property
    def place(self) -> str:
        """The local directory or directories, written as `open_source` takes them."""
        if self.factory:
            return self.factory.place
        own = str(self.path.resolve())
        return own if self.adapter is None else f"{own}+{self.adapter.path.resolve()}"

    @property
    def stored(self) -> list[tuple[str, Tensor]]:
        """Every stored tensor with a label, the adapter's after the model's."""
        return [*self.tensors.items(), *(self.adapter.tensors if self.adapter else ())]

    @property
    def dtype(self) -> str:
        """The dtype that most of its weights have, as recipes write it."""
        sizes: dict[str, int] = {}
        for t in self.tensors.values():
            sizes[t.dtype] = sizes.get(t.dtype, 0) + t.bytes
        return STORED_DTYPES[max(sizes, key=sizes.get)]

    @property
    def layers(self) -> int:
        return count_layers(self.tensors)

    @property
    def bytes(self) -> int:
        return sum(t.bytes for _, t in self.stored)


def locate(name: str, file: str = "evomerge", key: str = "source") -> Path:
    """Return the local directory of a source, fetching a hub id[@revision] if it is none.

    Raises:
        BadInput: it is neither a directory nor to be had from the hub.
    """
    try:
        if Path(name).is_dir():
            return Path(name)
    except OSError as error:
        raise BadInput(
            Fault(file, key, f"'{name[:80]}' cannot be read ({error.strerror})")
        ) from None
    repository, _, revision = name.partition("@")
    looks_local = name.startswith((".", "/", "~")) or repository.count("/") != 1 or " " in name
    if looks_local:
        mend = "write a model directory (relative to where evomerge is started) or a hub id"
        raise BadInput(Fault(file, key, f"there is no directory '{name}'", mend))
    from huggingface_hub import snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
    try:
        patterns = ["*.py", "*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "*.txt"]
        found = snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        wrong = f"'{name}' is no directory, and the hub has it not or is out of reach"
        wrong += f" ({type(error).__name__})"
        raise BadInput(Fault(file, key, wrong, "check the path or the id[@revision]")) from error
    return Path(found)


def has_chat_template(path: Path) -> bool:
    """Tell whether a model directory's tokenizer has a chat template."""
    settings = path / "tokenizer_config.json"
    said = read_json(settings) if settings.exists() else None
    own = isinstance(said, dict) and bool(said.get("chat_template"))
    return own or (path / "chat_template.jinja").exists()


def _adapter_of(name: str) -> tuple[str, str]:
    """Split `model+adapter`; a directory whose own name has a plus is a model."""
    model, plus, adapter = name.rpartition("+")
    return (model, adapter) if plus and not os.path.isdir(name) else (name, "")


def open_source(
    name: str, *, file: str = "evomerge", key: str = "source", trust_remote_code: bool = False
) -> Source:
    """Open a model directory by its headers; loads no weight.

    Raises:
        BadInput: with every fault of this directory.
    """
    if factory := parse_factory(name):
        return _open_factory(name, factory, file, key)
    whole, adapter_name = _adapter_of(name)
    path = locate(whole, file, key)
    faults: list[Fault] = []

    def fault(wrong: str, mend: str) -> None:
        faults.append(Fault(file, key, f"{path}: {wrong}", mend))

    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        fault("config.json is missing or not JSON", "write a Hugging Face model directory")
    elif "auto_map" in config and not trust_remote_code:
        fault("config.json asks to run code of its own", "set sources.trust_remote_code: true")
    tensors: dict[str, Tensor] = {}
    try:
        for shard in shards(path):
            tensors.update(read_header(shard))
    except ValueError as error:
        fault(str(error), "download or save the model again")
    except (AttributeError, KeyError, TypeError) as error:
        fault(f"has a header that makes no sense ({one_line(error)})", "save the model again")
    except FileNotFoundError:
        pickled = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
        wrong = f"holds pickled weights only ({pickled[0]})" if pickled else "holds no weights"
        fault(wrong, "save it with save_pretrained, which writes safetensors")
    except OSError as error:
        fault(f"cannot be read ({error.strerror})", "check its permissions")
    else:
        if not tensors:
            fault("holds no tensors", "save the model again")
    for tensor_name, t in tensors.items():
        if t.dtype not in STORED_DTYPES:
            wrong = f"tensor {tensor_name} has dtype {t.dtype}, which is not merged"
            fault(wrong, f"save the model as one of {', '.join(STORED_DTYPES.values())}")
            break
    vocabulary: dict[str, int] = {}
    try:
        vocabulary = _vocabulary(path)
    except ValueError as error:
        fault(str(error), "save the tokenizer again")
    adapter = None
    if adapter_name and not faults:
        where = locate(adapter_name, file, key)
        try:
            adapter = open_adapter(where, tensors)
        except (ValueError, AttributeError, KeyError, TypeError, re.error) as error:
            wrong = str(error) if isinstance(error, ValueError) else one_line(error)
            faults.append(Fault(file, key, f"{where}: {wrong}", "save the adapter with PEFT"))
        except OSError as error:
            wrong = f"{where}: cannot be read ({error.strerror})"
            faults.append(Fault(file, key, wrong, "check its permissions"))
    if faults:
        raise BadInput(*faults)
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)  # a second copy of the embeddings
    ordered = {n: tensors[n] for n in canonical_order(tensors)}
    return Source(name, path, config, ordered, vocabulary, adapter)


def _open_factory(name: str, factory: Factory, file: str, key: str) -> Source:
    try:
        weights = weights_file(factory)
        tensors = read_header(weights)
        config = {"factory": f"{factory.where}:{factory.function}"}
        config |= {"function": factory.function, "function_sha256": factory.definition}
        shapes = {n: tuple(t.shape) for n, t in state_of(build(factory)).items()}
    except (ValueError, OSError, ImportError) as error:
        wrong = f"'{name}': {error if isinstance(error, ValueError) else one_line(error)}"
        mend = "write {factory: FILE.py:function, weights: FILE.safetensors or seed: NUMBER}"
        raise BadInput(Fault(file, key, wrong, mend)) from error
    if odd := [n for n, t in tensors.items() if t.dtype not in STORED_DTYPES]:
        wrong = f"'{name}': tensor {odd[0]} has dtype {tensors[odd[0]].dtype}, which is not merged"
        raise BadInput(Fault(file, key, wrong, "keep it out of the module's state"))
    if differ := [n for n in tensors | shapes if shapes.get(n) != _shape_of(tensors.get(n))]:
        wrong = f"'{name}': {differ[0]} is {_shape_of(tensors.get(differ[0])) or 'missing'} in the"
        wrong += f" file, {shapes.get(differ[0], 'missing')} in the module"
        raise BadInput(Fault(file, key, wrong, "save its state_dict() again"))
    ordered = {n: tensors[n] for n in canonical_order(tensors)}
    return Source(name, weights.parent, config, ordered, {}, factory=factory)


def _shape_of(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tensor.shape


def _vocabulary(path: Path) -> dict[str, int]:
    """Return token -> id from tokenizer.json (or vocab.json); empty if there is neither.

    Raises:
        ValueError: tokenizer.json is there and makes no sense.
    """
    if not (path / "tokenizer.json").exists():
        vocabulary = read_json(path / "vocab.json")
        return vocabulary if isinstance(vocabulary, dict) else {}
    data = read_json(path / "tokenizer.json")
    try:
        vocabulary = data["model"].get("vocab") or {}
        if isinstance(vocabulary, list):  # unigram models list [token, score]
            vocabulary = {token: i for i, (token, *_) in enumerate(vocabulary)}
        return vocabulary | {t["content"]: t["id"] for t in data.get("added_tokens") or []}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("tokenizer.json is no tokenizer") from None


def moved_faults(moved: Mapping[str, str], labels: Iterable[str]) -> list[Fault]:
    """Return a fault for each `--source label=path` whose label is none of `labels`."""
    labels = list(labels)
    return [
        Fault("--source", label, "is no source of this campaign", nearest(label, labels))
        for label in moved
        if label not in labels
    ]


def is_candidate(name: str) -> bool:
    """Tell whether a source's name means an archived candidate."""
    return "#" in name and not os.path.isdir(name)
