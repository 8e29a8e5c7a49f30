"""Sources: Hugging Face model directories, with or without a LoRA adapter, by their headers.

Opening a source reads config.json, the tokenizer's vocabulary and the headers, and asks an empty
model of the class what it takes of them; `digest` is the one pass over its weights. A source with
an adapter is written `model+adapter`, as mergekit does.
"""

import functools
import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

from evomerge.dtypes import CODES, SIZE, STORED_DTYPES
from evomerge.errors import BadInput, Fault, Faults, nearest, one_line
from evomerge.sources.checkpoint import Checkpoint, read_checkpoint
from evomerge.sources.companions import link_faults
from evomerge.sources.evidence import NOTHING, Evidence, check_evidence, split_evidence
from evomerge.sources.factory import Factory, build, parse_factory, state_of, weights_file
from evomerge.sources.hub import Repository, fetch
from evomerge.sources.locate import local_directory, locate, what_it_is_instead
from evomerge.sources.lora import Adapter, open_adapter
from evomerge.sources.model_class import is_known
from evomerge.sources.safetensors_file import Tensor, read_header, read_json
from evomerge.sources.signs import StoredSigns
from evomerge.sources.tokenizer import vocabulary
from evomerge.sources.trust import NOBODY, Trust
from evomerge.sources.weight_files import PICKLES, Folder, WeightFiles, lacks_weights, shards
from evomerge.tensor_names import canonical_order, count_layers

_ADAPTER_WEIGHTS = "adapter_model.safetensors"

# What a config says of its own history, not of the model.
CONFIG_NOISE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "factory"}

# Of code that a config names, what is needed where transformers knows the model itself.
_NOT_OF_MODELS = {"AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"}

_TRUST = "set sources.trust_remote_code: true, or give --trust-code, if you trust it"


@dataclass(frozen=True)
class Source:
    """An opened model directory, and perhaps an adapter of it.

    Attributes:
        name: what the user wrote.
        path: the directory.
        config: what config.json says.
        tensors: the model's, in canonical order, by the names that transformers would save.
        vocabulary: token -> id; empty if the directory has none.
        adapter: that is added to the model.
        factory: what makes the module, where it is no Hugging Face model.
        class_name: of the model in transformers.
        carried: tensors of integers that the model keeps, which are taken as they are.
        notes: what a user should know of it, one line each.
        unaligned: the source as its files have it, where `tensors` follow another's vocabulary.
        to_fetch: files of its weights that are on the hub still, with their bytes.
        evidence: what is known of it beside its weights.
        signs: tensors that are held as signs, by name; they are not among `tensors`.

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
    class_name: str = ""
    carried: dict[str, Tensor] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    unaligned: Self | None = field(default=None, repr=False)
    to_fetch: dict[Path, int] = field(default_factory=dict, repr=False)
    evidence: Evidence = NOTHING
    signs: dict[str, StoredSigns] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> str:
        """The local directory or directories, written as `open_source` takes them."""
        if self.factory is not None:
            return self.factory.place
        model = str(self.path.resolve())
        if self.adapter is not None:
            model += f"+{self.adapter.path.resolve()}"
        return model + self.evidence.resolved.suffix

    @property
    def stored(self) -> list[tuple[str, Tensor]]:
        """Every stored tensor with a label, its name there; the adapter's after the model's."""
        if self.unaligned is not None:
            return self.unaligned.stored
        own = [*self.tensors.items(), *self.carried.items()]
        labelled = [(tensor.key or name, tensor) for name, tensor in own]
        if self.adapter is not None:
            labelled += self.adapter.tensors
        labelled += [(signs.codes.key, signs.codes) for signs in self.signs.values()]
        return labelled

    @functools.cached_property
    def dtype(self) -> str:
        """The dtype that most of its weights have, as recipes write it."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
        return STORED_DTYPES[max(sizes, key=lambda code: sizes[code])]

    def dtype_of(self, name: str, dtype: str) -> str:
        """Return the dtype of a merge's tensor.

        Those of the model's own dtype get the merge's. Those that are kept wider on purpose, as
        routers' biases are in float32 among bfloat16, stay as they are.

        Args:
            name: of the tensor.
            dtype: of the merge, as recipes write it.
        """
        stored = self.tensors[name].dtype
        if stored == "" or SIZE[stored] <= SIZE[CODES[self.dtype]]:
            return dtype
        return STORED_DTYPES[stored] if SIZE[stored] > SIZE[CODES[dtype]] else dtype

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return count_layers(self.tensors)

    @property
    def bytes(self) -> int:
        """How many bytes its weights take on disk."""
        return sum(tensor.bytes for _, tensor in self.stored)


def open_source(name: str, trust: Trust = NOBODY, *, weights: bool = True) -> Source:
    """Open a model directory by its headers; loads no weight.

    Of a hub id the settings and the headers are read first, and the weights fetched only where
    nothing is wrong with those.

    Args:
        name: a directory, a hub id[@revision], either with `+adapter` and with `?texts=FILE` or
            other evidence (see `sources.evidence`), or a factory (see `sources.factory`).
        trust: what code of others may run. A factory asks for it, and a model whose config names
            code of its own, unless transformers knows such models itself.
        weights: fetch those of a hub id that are not in its cache. Without them `to_fetch` of what
            is returned says what remains.

    Raises:
        BadInput: with every fault of this directory.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(folder, seed=0)))
    >>> source.layers, source.dtype, len(source.tensors), len(source.vocabulary)
    (2, 'bfloat16', 20, 32)
    """
    model, evidence = split_evidence(name)
    if evidence.suffix:
        source = open_source(model, trust, weights=weights)
        check_evidence(evidence, source.tensors)
        return replace(source, name=name, evidence=evidence)
    if factory := parse_factory(name):
        if not trust.functions:
            raise BadInput(Fault("", f"'{name}' would run a Python function", _TRUST))
        return _open_factory(name, factory)
    source = _by_headers(name, trust)
    if not weights or not source.to_fetch:
        return source
    repository = split_adapter(name)[0].partition("@")[0]  # at the commit that was looked at
    weights_of_it = [glob.escape(file.name) for file in source.to_fetch]
    fetch(f"{repository}@{source.path.name}", weights_of_it)
    return replace(_by_headers(source.place, trust), name=name)


def _by_headers(name: str, trust: Trust) -> Source:
    """See `open_source`."""
    model, adapter_name = split_adapter(name)
    path = locate(model)
    faults = Faults()
    config = _read_config(path, trust, faults)
    files: WeightFiles = Folder(path)
    stored: dict[str, Tensor] = {}
    with faults.gather():
        if local_directory(model) is None and lacks_weights(path):
            files = Repository(model, path)
        stored = _read_tensors(path, files, faults)
    known: dict[str, int] = {}
    try:
        known = vocabulary(path)
    except ValueError as error:
        faults.add("", f"{path}: {error}", "save the tokenizer again")
    faults.extend(link_faults(path, "auto_map" in config))
    faults.check()
    checkpoint = Checkpoint({}, {}, {})
    with faults.gather():
        checkpoint = read_checkpoint(path, config, stored, trust.remote_code)
    adapter, notes = None, checkpoint.notes
    if adapter_name and not faults:  # it is compared with the model's tensors
        with faults.gather():
            adapter_path = locate(adapter_name, also=[_ADAPTER_WEIGHTS])
            adapter = open_adapter(adapter_path, checkpoint, model)
            notes += adapter.notes
    faults.check()
    ordered = {n: checkpoint.tensors[n] for n in canonical_order(checkpoint.tensors)}
    return Source(
        name,
        path,
        checkpoint.config,
        ordered,
        known,
        adapter,
        class_name=checkpoint.class_name,
        carried=checkpoint.carried,
        notes=notes,
        to_fetch=files.missing(stored) if isinstance(files, Repository) else {},
    )


def split_adapter(name: str) -> tuple[str, str]:
    """Split `model+adapter`; a directory whose own name has a plus is a model.

    >>> split_adapter("org/base+adapters/ja"), split_adapter("org/base")
    (('org/base', 'adapters/ja'), ('org/base', ''))
    """
    model, plus, adapter = name.rpartition("+")
    if plus and not os.path.isdir(os.path.expanduser(name)):
        return model, adapter
    return name, ""


def _read_config(path: Path, trust: Trust, faults: Faults) -> dict[str, Any]:
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        wrong = f"{path}: config.json is missing or not JSON"
        instead = what_it_is_instead(path)
        faults.extend([instead or Fault("", wrong, "write a Hugging Face model directory")])
        return {}
    config = _without_kernels(config)
    if config.get("transformers_weights"):
        wrong = f"{path}: config.json names another file of weights (transformers_weights)"
        faults.add("", wrong, "save the model again, or leave the key out")
    code = config.get("auto_map")
    if code and not isinstance(code, Mapping):
        faults.add("", f"{path}: auto_map in config.json is no mapping", "leave it out")
        return {}
    if code and is_known(config):
        # transformers takes its own class, and so does whoever loads what is made of this
        kept = {k: v for k, v in code.items() if k in _NOT_OF_MODELS}
        config = {k: v for k, v in config.items() if k != "auto_map"}
        return {**config, "auto_map": kept} if kept else config
    if code and not trust.remote_code:
        faults.add("", f"{path}: config.json asks to run code of its own", _TRUST)
    return config


def _without_kernels(config: Any) -> Any:
    """Return a config without the names of kernels on the hub, whose code transformers would run.

    What attention is computed by is no property of a model.
    """
    if not isinstance(config, dict):
        return config
    kept = {}
    for key, value in config.items():
        is_kernel = key.endswith("_implementation") and isinstance(value, str) and "/" in value
        if not is_kernel:
            kept[key] = _without_kernels(value)
    return kept


def _read_tensors(path: Path, files: WeightFiles, faults: Faults) -> dict[str, Tensor]:
    """Return the tensors of all shards by name, none if there is a fault."""
    tensors: dict[str, Tensor] = {}
    try:
        for held in files.headers([shard.name for shard in shards(path, files)]):
            tensors.update(held)
    except ValueError as error:
        faults.add("", f"{path}: {error}", "download or save the model again")
    except FileNotFoundError:
        if what_it_is_instead(path) is not None:  # which is told where config.json is missing
            return {}
        pickled = sorted(n for n in files.names if any(fnmatch(n, kind) for kind in PICKLES))
        wrong = f"holds pickled weights only ({pickled[0]})" if pickled else "holds no weights"
        mend = "save it with save_pretrained, which writes safetensors"
        faults.add("", f"{path}: {wrong}", mend)
    except OSError as error:
        faults.add("", f"{path}: cannot be read ({error.strerror})", "check its permissions")
    else:
        if not tensors:
            faults.add("", f"{path}: holds no tensors", "save the model again")
    return tensors


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
    model = split_evidence(name)[0]  # what is known of it may lie in any folder
    return "#" in model and not os.path.isdir(model)
