"""diffusers' models: a component's folder with config.json, by its headers, and its class.

diffusers' own layout (https://huggingface.co/docs/diffusers/using-diffusers/other-formats): a model
is a folder whose config.json names its class (`_class_name`), and whose weights are
`diffusion_pytorch_model.safetensors`, or shards with an index. A class comes from the library
alone; no code that lies beside a model is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, Fault, one_line
from evomerge.sources.checkpoint import Checkpoint
from evomerge.sources.model_class import refuse_absurd
from evomerge.sources.safetensors_file import Tensor

if TYPE_CHECKING:
    import torch

STEM = "diffusion_pytorch_model"  # of the files that hold the weights

INSTALL = 'pip install "evomerge[diffusers]"'

_LISTED = 3  # names in a note


def is_diffusers(config: Mapping[str, Any]) -> bool:
    """Tell whether a config.json is that of a diffusers model.

    >>> is_diffusers({"_class_name": "UNet2DConditionModel"}), is_diffusers({"model_type": "bert"})
    (True, False)
    """
    return "_class_name" in config


def class_named(name: Any, base: str) -> Any:
    """Return a class of diffusers.

    Args:
        name: of the class, which may be anything.
        base: of the class that it must be derived from.

    Raises:
        BadInput: diffusers is not installed, or has no such class.

    >>> class_named("os", "ModelMixin")
    Traceback (most recent call last):
    evomerge.errors.BadInput: diffusers ...
    """
    try:
        import diffusers
    except ImportError:
        raise BadInput(Fault("", "diffusers is not installed", INSTALL)) from None
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, getattr(diffusers, base)):
        wrong = f"diffusers {diffusers.__version__} has no {base} {name!r:.80}"
        raise BadInput(Fault("", wrong, "install the version that the model was saved with"))
    return found


def model_without_weights(config: Mapping[str, Any], dtype: str = "float32") -> "torch.nn.Module":
    """Return a new model, whose parameters are on the meta device; its buffers are computed.

    Args:
        config: what its config.json says.
        dtype: in which buffers are computed that do not choose one, as `from_pretrained` does.

    Raises:
        BadInput: there is no such class, or it does not take the config.

    >>> model_without_weights({"_class_name": "NoSuchModel"})
    Traceback (most recent call last):
    evomerge.errors.BadInput: diffusers ...
    """
    import torch
    from accelerate import init_empty_weights

    made_by = class_named(config.get("_class_name"), "ModelMixin")
    usual = torch.get_default_dtype()
    try:
        refuse_absurd(config)
        torch.set_default_dtype(getattr(torch, dtype))
        with init_empty_weights(include_buffers=False):
            model: torch.nn.Module = made_by.from_config(dict(config))
    except Exception as error:  # of a config that is no such model's: any kind
        wrong = f"config.json makes no {made_by.__name__} ({one_line(error)})"
        raise BadInput(Fault("", wrong, "save the model again with save_pretrained")) from None
    finally:
        torch.set_default_dtype(usual)
    return model


def read_diffusers(
    path: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]
) -> Checkpoint:
    """Return what the model of a config takes of a directory's tensors.

    Args:
        path: the directory.
        config: what its config.json says.
        stored: its tensors by name.

    Raises:
        BadInput: diffusers has no such model, or the tensors do not fill it.

    >>> read_diffusers(Path("unet"), {"quantization_config": {}}, {})
    Traceback (most recent call last):
    evomerge.errors.BadInput: unet: holds quantized weights, which are not merged; ...
    """
    if "quantization_config" in config:
        wrong = f"{path}: holds quantized weights, which are not merged"
        raise BadInput(Fault("", wrong, "take the model that was quantized"))
    try:
        model = model_without_weights(config)
    except BadInput as error:
        raise BadInput(*(Fault("", f"{path}: {f.wrong}", f.mend) for f in error.faults)) from None
    state, name = model.state_dict(), type(model).__name__
    if wrong := _what_is_wrong(state, stored):
        mend = "load it with diffusers and save it again with save_pretrained"
        raise BadInput(Fault("", f"{path}: does not fill a {name}: {wrong}", mend))
    tensors: dict[str, Tensor] = {}
    carried: dict[str, Tensor] = {}
    for key in state.keys() & stored.keys():
        if stored[key].dtype in STORED_DTYPES:
            tensors[key] = stored[key]
        elif not state[key].dtype.is_floating_point:
            carried[key] = stored[key]
        else:
            wrong = f"{path}: tensor {key} has dtype {stored[key].dtype}, which is not merged"
            mend = f"save the model as one of {', '.join(STORED_DTYPES.values())}"
            raise BadInput(Fault("", wrong, mend))
    notes = []
    if unused := sorted(stored.keys() - state.keys()):
        listed = ", ".join(unused[:_LISTED]) + (", ..." if len(unused) > _LISTED else "")
        notes.append(f"'{path}': a {name} has no use for {len(unused)} tensors, left out: {listed}")
    return Checkpoint(dict(config), tensors, carried, name, tuple(notes))


def _what_is_wrong(state: "Mapping[str, torch.Tensor]", stored: Mapping[str, Tensor]) -> str:
    """Return what a model misses in a checkpoint, or what has not its shape; "" if nothing."""
    for key, tensor in state.items():
        if key not in stored:
            return f"{key} is missing"
        if stored[key].shape != tuple(tensor.shape):
            return f"{key} is {stored[key].shape}, and {tuple(tensor.shape)} by config.json"
    return ""


def kept_in_float32(model: "torch.nn.Module") -> "list[torch.Tensor]":
    """Return the tensors that a diffusers model of a narrower dtype keeps in float32.

    As its class says (`_keep_in_fp32_modules`, parts of names between dots), and `from_pretrained`
    does.

    >>> import torch
    >>> kept_in_float32(torch.nn.Linear(1, 1))
    []
    """
    listed = getattr(model, "_keep_in_fp32_modules", None) or []
    wide = {listed} if isinstance(listed, str) else set(listed)
    named = model.state_dict(keep_vars=True).items()
    return [tensor for name, tensor in named if wide & set(name.split("."))]


def pipeline_around(path: Path, components: Mapping[str, Any], dtype: str, device: str) -> Any:
    """Return a pipeline of diffusers with some of its components given, the others from its folder.

    Args:
        path: a folder that `pipelines.read_pipeline` took.
        components: those that are given, by the folder's names.
        dtype: of the others' weights, as recipes write it.
        device: where they go.

    Raises:
        BadInput: diffusers is not installed.

    >>> pipeline_around(Path("nowhere"), {}, "float32", "cpu")
    Traceback (most recent call last):
    evomerge.errors.BadInput: ...
    """
    import torch

    if not path.is_dir():
        raise BadInput(Fault("", f"there is no directory '{path}'"))
    pipeline = class_named("DiffusionPipeline", "DiffusionPipeline").from_pretrained(
        str(path),
        **components,
        torch_dtype=getattr(torch, dtype),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
