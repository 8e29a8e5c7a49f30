"""Sources: Hugging Face model directories, with or without a LoRA adapter, by their headers.

Everything here is torch-free. Opening a source reads config.json, the tokenizer's
vocabulary and the headers; `digest` is the one pass over its weights. A source with an
adapter is written `model+adapter`, as mergekit does.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, Fault, Faults, nearest, one_line
from evomerge.sources.factory import Factory, build, parse_factory, state_of, weights_file
from evomerge.sources.lora import Adapter, open_adapter
from evomerge.sources.safetensors_file import PICKLES, Tensor, read_header, read_json, shards
from evomerge.tensor_names import canonical_order, count_layers

# What a config says of its own history, not of the model.
CONFIG_NOISE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "factory"}

# What of a hub's repository is fetched: code, settings, weights and tokenizers of all kinds.
_FETCHED = ["*.py", "*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "*.txt"]


@dataclass(frozen=True)
class Source:
    """An opened model directory, and perhaps an adapter of it.

    Attributes:
        name: what the user wrote.
        path: the directory.
        config: what config.json says.
        tensors: the model's, in canonical order.
        vocabulary: token -> id; empty if the directory has none.
        adapter: that is added to the model.
        factory: what makes the module, where it is no Hugging Face model.

    >>> tensor = Tensor("BF16", (4, 2), Path("model.safetensors"), "wte.weight", 80, 96)
    >>> source = Source("a", Path("a"), {}, {"wte.weight": tensor}, {})
    >>> source.dtype, source.layers, source.bytes
    ('bfloat16', 0, 16)
    """

    name: str
    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    vocabulary: dict[str, int] = field(repr=False)
    adapter: Adapter | None = None
    factory: Factory | None = None

    @property
    def place(self) -> str:
        """The local directory or directories, written as `open_source` takes them."""
        if self.factory is not None:
            return self.factory.place
        model = str(self.path.resolve())
        return model if self.adapter is None else f"{model}+{self.adapter.path.resolve()}"

    @property
    def stored(self) -> list[tuple[str, Tensor]]:
        """Every stored tensor with a label, the adapter's after the model's."""
        labelled = list(self.tensors.items())
        if self.adapter is not None:
            labelled += self.adapter.tensors
        return labelled

    @property
    def dtype(self) -> str:
        """The dtype that most of its weights have, as recipes write it."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
        return STORED_DTYPES[max(sizes, key=lambda code: sizes[code])]

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return count_layers(self.tensors)

    @property
    def bytes(self) -> int:
        """How many bytes its weights take on disk."""
        return sum(tensor.bytes for _, tensor in self.stored)


def locate(name: str) -> Path:
    """Return the local directory of a source, fetching a hub id[@revision] if it is none.

    Raises:
        BadInput: it is neither a directory nor to be had from the hub.

    >>> locate("./nowhere")
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no directory './nowhere'; write a model directory ...
    """
    try:
        if Path(name).is_dir():
            return Path(name)
    except OSError as error:
        wrong = f"'{name[:80]}' cannot be read ({error.strerror})"
        raise BadInput(Fault("", wrong)) from None
    repository, _, revision = name.partition("@")
    looks_local = name.startswith((".", "/", "~")) or repository.count("/") != 1 or " " in name
    if looks_local:
        mend = "write a model directory (relative to where evomerge is started) or a hub id"
        raise BadInput(Fault("", f"there is no directory '{name}'", mend))
    from huggingface_hub import snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    try:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=_FETCHED)
        )
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        wrong = f"'{name}' is no directory, and the hub does not have it or is out of reach"
        wrong += f" ({type(error).__name__})"
        raise BadInput(Fault("", wrong, "check the path or the id[@revision]")) from error


def has_chat_template(path: Path) -> bool:
    """Tell whether a model directory's tokenizer has a chat template.

    >>> has_chat_template(Path("nowhere"))
    False
    """
    settings = read_json(path / "tokenizer_config.json")
    if isinstance(settings, dict) and settings.get("chat_template"):
        return True
    return (path / "chat_template.jinja").exists()


def open_source(name: str, *, trust_remote_code: bool = False) -> Source:
    """Open a model directory by its headers; loads no weight.

    Args:
        name: a directory, a hub id[@revision], either with `+adapter`, or a factory (see
            `sources.factory`).
        trust_remote_code: take models whose config asks to run code of their own.

    Raises:
        BadInput: with every fault of this directory.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(folder, seed=0)))
    >>> source.layers, source.dtype, len(source.tensors), len(source.vocabulary)
    (2, 'bfloat16', 20, 32)
    """
    if factory := parse_factory(name):
        return _open_factory(name, factory)
    model, adapter_name = _split_adapter(name)
    path = locate(model)
    faults = Faults()
    config = _read_config(path, trust_remote_code, faults)
    tensors = _read_tensors(path, faults)
    vocabulary: dict[str, int] = {}
    try:
        vocabulary = _vocabulary(path)
    except ValueError as error:
        faults.add("", f"{path}: {error}", "save the tokenizer again")
    adapter = None
    if adapter_name and not faults:  # it is compared with the model's tensors
        with faults.gather():
            adapter = open_adapter(locate(adapter_name), tensors)
    faults.check()
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)  # a second copy of the embeddings
    ordered = {n: tensors[n] for n in canonical_order(tensors)}
    return Source(name, path, config, ordered, vocabulary, adapter)


def _split_adapter(name: str) -> tuple[str, str]:
    """Split `model+adapter`; a directory whose own name has a plus is a model."""
    model, plus, adapter = name.rpartition("+")
    return (model, adapter) if plus and not os.path.isdir(name) else (name, "")


def _read_config(path: Path, trust_remote_code: bool, faults: Faults) -> dict[str, Any]:
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        wrong = f"{path}: config.json is missing or not JSON"
        faults.add("", wrong, "write a Hugging Face model directory")
        return {}
    if "auto_map" in config and not trust_remote_code:
        wrong = f"{path}: config.json asks to run code of its own"
        faults.add("", wrong, "set sources.trust_remote_code: true")
    return config


def _read_tensors(path: Path, faults: Faults) -> dict[str, Tensor]:
    """Return the tensors of all shards by name, those before a fault if there is one."""
    tensors: dict[str, Tensor] = {}
    try:
        for shard in shards(path):
            tensors.update(read_header(shard))
    except ValueError as error:
        faults.add("", f"{path}: {error}", "download or save the model again")
    except FileNotFoundError:
        pickled = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
        wrong = f"holds pickled weights only ({pickled[0]})" if pickled else "holds no weights"
        mend = "save it with save_pretrained, which writes safetensors"
        faults.add("", f"{path}: {wrong}", mend)
    except OSError as error:
        faults.add("", f"{path}: cannot be read ({error.strerror})", "check its permissions")
    else:
        if not tensors:
            faults.add("", f"{path}: holds no tensors", "save the model again")
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED_DTYPES:
            wrong = f"{path}: tensor {name} has dtype {tensor.dtype}, which is not merged"
            faults.add("", wrong, f"save the model as one of {', '.join(STORED_DTYPES.values())}")
            break
    return tensors


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


def _open_factory(name: str, factory: Factory) -> Source:
    try:
        weights = weights_file(factory)
        tensors = read_header(weights)
        config = {"factory": f"{factory.where}:{factory.function}"}
        config |= {"function": factory.function, "function_sha256": factory.definition}
        shapes = {n: tuple(t.shape) for n, t in state_of(build(factory)).items()}
    except (ValueError, OSError, ImportError) as error:
        wrong = f"'{name}': {error if isinstance(error, ValueError) else one_line(error)}"
        mend = "write {factory: FILE.py:function, weights: FILE.safetensors or seed: NUMBER}"
        raise BadInput(Fault("", wrong, mend)) from error
    for key, tensor in tensors.items():
        if tensor.dtype not in STORED_DTYPES:
            wrong = f"'{name}': tensor {key} has dtype {tensor.dtype}, which is not merged"
            raise BadInput(Fault("", wrong, "keep it out of the module's state"))
    stored = {key: tensor.shape for key, tensor in tensors.items()}
    for key in stored | shapes:
        in_file, in_module = stored.get(key, "missing"), shapes.get(key, "missing")
        if in_file != in_module:
            wrong = f"'{name}': {key} is {in_file} in the file, {in_module} in the module"
            raise BadInput(Fault("", wrong, "save its state_dict() again"))
    ordered = {n: tensors[n] for n in canonical_order(tensors)}
    return Source(name, weights.parent, config, ordered, {}, factory=factory)


def moved_faults(moved: Mapping[str, str], labels: Iterable[str]) -> list[Fault]:
    """Return a fault for each `--source label=path` whose label is none of `labels`.

    >>> print(moved_faults({"bsae": "elsewhere"}, ["base", "a"])[0])
    --source: bsae: is no source of this campaign; did you mean 'base'?
    """
    labels = list(labels)
    faults = []
    for label in moved:
        if label not in labels:
            mend = nearest(label, labels)
            faults.append(Fault(label, "is no source of this campaign", mend, file="--source"))
    return faults


def is_candidate(name: str) -> bool:
    """Tell whether a source's name means an archived candidate.

    >>> is_candidate("runs/maths#best"), is_candidate("models/a")
    (True, False)
    """
    return "#" in name and not os.path.isdir(name)
