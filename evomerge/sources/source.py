"""Sources: Hugging Face model directories, with or without a LoRA adapter, by their headers.

Opening a source reads config.json, the tokenizer's vocabulary and the headers, and asks an empty
model of the class what it takes of them; `digest` is the one pass over its weights. A source with
an adapter is written `model+adapter`, as mergekit does.
"""

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, Fault, Faults, nearest, one_line
from evomerge.sources.checkpoint import Checkpoint, read_checkpoint
from evomerge.sources.companions import link_faults
from evomerge.sources.config_file import TRUST_MEND, read_config
from evomerge.sources.evidence import check_evidence, split_evidence
from evomerge.sources.factory import Factory, build, parse_factory, state_of, weights_file
from evomerge.sources.home import Home
from evomerge.sources.hub import fetch
from evomerge.sources.image_models import is_component, open_component, open_file, open_pipeline
from evomerge.sources.locate import local_directory, locate
from evomerge.sources.lora import Adapter, open_adapter
from evomerge.sources.named_parts import TRUNK, split_parts
from evomerge.sources.opened import CONFIG_NOISE as CONFIG_NOISE
from evomerge.sources.opened import Source as Source
from evomerge.sources.pipelines import is_pipeline
from evomerge.sources.safetensors_file import Tensor, read_header
from evomerge.sources.sentence_modules import is_sentence_model, module_tensors
from evomerge.sources.single_file import is_single_file
from evomerge.sources.stored_tensors import read_tensors
from evomerge.sources.tokenizer import vocabulary
from evomerge.sources.trunk import Trunk, trunk_of
from evomerge.sources.trust import NOBODY, Trust
from evomerge.sources.weight_files import Folder, WeightFiles
from evomerge.tensor_names import canonical_order

_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def open_source(name: str, trust: Trust = NOBODY, *, weights: bool = True) -> Source:
    """Open a model directory by its headers; loads no weight.

    Of a hub id the settings and the headers are read first, and the weights fetched only where
    nothing is wrong with those.

    Args:
        name: a directory, a hub id[@revision], either with `+adapter`, a pipeline's folder or one
            file, or a factory (see `sources.factory`); perhaps with parts (see `named_parts`), and
            with `?texts=FILE` or what else is known of it (see `evidence`).
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
        known = source.tensors | {source.prefix + n: t for n, t in source.tensors.items()}
        check_evidence(evidence, known, is_part=bool(source.parts))
        return replace(source, name=name, evidence=evidence)
    if factory := parse_factory(name):
        if not trust.functions:
            raise BadInput(Fault("", f"'{name}' would run a Python function", TRUST_MEND))
        return _open_factory(name, factory)
    source = _by_headers(name, trust)
    if not weights or not source.to_fetch:
        return source
    repository = split_adapter(split_parts(name)[0])[0].partition("@")[0]  # at the commit seen
    places = [file.relative_to(source.path).as_posix() for file in source.to_fetch]
    fetch(f"{repository}@{source.path.name}", [glob.escape(place) for place in places])
    return replace(_by_headers(source.place, trust), name=name)


def _by_headers(name: str, trust: Trust) -> Source:
    """See `open_source`."""
    named, parts = split_parts(name)
    if is_single_file(named):
        return open_file(name, Path(named).expanduser(), parts)
    model, adapter_name = split_adapter(named)
    home = Home(locate(model), model if local_directory(model) is None else "")
    if adapter_name and (is_pipeline(home.path) or is_component(home.path)):
        wrong = f"'{name}' is a model of diffusers, whose adapters are not merged"
        raise BadInput(Fault("", wrong, "fuse the adapter into its model (fuse_lora)"))
    if is_pipeline(home.path):
        return open_pipeline(name, home, parts, lambda part: _open(str(part.path), part, (), trust))
    return _open(name, home, parts, trust)


def _open(name: str, home: Home, parts: tuple[str, ...], trust: Trust) -> Source:
    """Open a model in a folder of its own."""
    if is_component(home.path):
        return open_component(name, home, parts)
    return _open_transformers(name, home, parts, trust)


def _open_transformers(name: str, home: Home, parts: tuple[str, ...], trust: Trust) -> Source:
    """Open a transformers model, alone or in sentence-transformers' layout."""
    model, adapter_name = split_adapter(split_parts(name)[0])
    faults, path = Faults(), home.path
    config = read_config(path, trust, faults)
    files: WeightFiles = Folder(path)
    stored: dict[str, Tensor] = {}
    modules: dict[str, dict[str, Tensor]] = {}
    with faults.gather():
        files = home.files()
        stored = read_tensors(path, files, faults)
    known: dict[str, int] = {}
    try:
        known = vocabulary(path)
    except ValueError as error:
        faults.add("", f"{path}: {error}", "save the tokenizer again")
    faults.extend(link_faults(path, "auto_map" in config))
    if is_sentence_model(path):
        with faults.gather():
            modules = module_tensors(path)
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
    tensors, carried, prefix = checkpoint.tensors, checkpoint.carried, ""
    if parts:
        tensors, head, prefix = _trunk(name, parts, checkpoint, adapter)
        carried = carried | head
    for folder, of_module in modules.items():
        own = {f"{folder}.{key}": tensor for key, tensor in of_module.items()}
        tensors, carried = (tensors, carried | own) if parts else (tensors | own, carried)
    return Source(
        name,
        path,
        checkpoint.config,
        {n: tensors[n] for n in canonical_order(tensors)},
        known,
        adapter,
        class_name=checkpoint.class_name,
        carried=carried,
        notes=notes,
        to_fetch=files.missing(stored),
        form="sentence" if is_sentence_model(path) else "transformers",
        parts=parts,
        prefix=prefix,
    )


def _trunk(
    name: str, parts: tuple[str, ...], checkpoint: Checkpoint, adapter: Adapter | None
) -> Trunk:
    """Part a transformers model whose name asks for its trunk."""
    if parts != (TRUNK,):
        wrong = f"'{name}' has no parts but {TRUNK}"
        raise BadInput(Fault("", wrong, "write sources.heads: keep, or leave out the parts"))
    if adapter is not None:
        wrong = f"'{name}' is an adapter, whose head is not told from its trunk"
        raise BadInput(Fault("", wrong, "merge the adapter into its model (merge_and_unload)"))
    try:
        return trunk_of(checkpoint)
    except ValueError as error:
        raise BadInput(Fault("", f"'{name}' {error}", "leave out sources.heads")) from None


def split_adapter(name: str) -> tuple[str, str]:
    """Split `model+adapter`; a directory whose own name has a plus is a model.

    >>> split_adapter("org/base+adapters/ja"), split_adapter("org/base")
    (('org/base', 'adapters/ja'), ('org/base', ''))
    """
    model, plus, adapter = name.rpartition("+")
    if plus and not os.path.isdir(os.path.expanduser(name)):
        return model, adapter
    return name, ""


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
