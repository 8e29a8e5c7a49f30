"""One .safetensors file that is a whole model, as image models are shared.

Its tensors keep their names. Files of Stable Diffusion and its kin hold a denoiser, whose names
begin with `model.diffusion_model.`, beside text encoders and a decoder of images: of these the
denoiser is merged, and the rest stays as the frame's file has it, unless parts are named.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, Fault
from evomerge.sources.safetensors_file import Tensor, read_header

SUFFIX = ".safetensors"

_DENOISER = "model.diffusion_model"


class SingleFile(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: those that are merged, by name.
        carried: the rest.
        parts: what the names of the former begin with; none if all are merged.

    >>> SingleFile({}, {}, ()).parts
    ()
    """

    tensors: dict[str, Tensor]
    carried: dict[str, Tensor]
    parts: tuple[str, ...]


def is_single_file(name: str) -> bool:
    """Tell whether a source's name is that of such a file.

    >>> is_single_file("models/nowhere.safetensors"), is_single_file("models/ja")
    (False, False)
    """
    return name.endswith(SUFFIX) and Path(name).expanduser().is_file()


def read_single_file(file: Path, parts: Sequence[str] = ()) -> SingleFile:
    """Return what a file holds, by its header.

    Args:
        file: that is there.
        parts: beginnings of tensor names, up to a dot; by default the denoiser's, or all.

    Raises:
        BadInput: it is no whole file, has no such part, or one of a dtype that is not merged.

    >>> import tempfile
    >>> from evomerge.sources.safetensors_file import header_bytes
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "dream.safetensors"
    ...     names = ("model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias")
    ...     entries = {name: ("F32", (2,)) for name in names}
    ...     _ = file.write_bytes(header_bytes(entries) + bytes(16))
    ...     read = read_single_file(file)
    >>> list(read.tensors), list(read.carried)
    (['model.diffusion_model.out.2.bias'], ['first_stage_model.quant_conv.bias'])
    """
    try:
        stored = read_header(file)
    except (ValueError, OSError) as error:
        raise BadInput(Fault("", f"{file}: {error}", "download it again")) from None
    chosen = tuple(parts)
    if not chosen and _named(stored, _DENOISER):
        chosen = (_DENOISER,)
    for part in chosen:
        if not _named(stored, part):
            first = sorted({name.partition(".")[0] for name in stored})
            mend = f"names there begin with {', '.join(first[:8])}"
            raise BadInput(Fault("", f"{file}: no tensor's name begins with '{part}.'", mend))
    wanted = {name for part in chosen for name in _named(stored, part)} if chosen else set(stored)
    tensors: dict[str, Tensor] = {}
    carried: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        is_whole_number = tensor.dtype[:1] in ("I", "U") or tensor.dtype == "BOOL"
        if name in wanted and not is_whole_number:
            if tensor.dtype not in STORED_DTYPES:
                wrong = f"{file}: tensor {name} has dtype {tensor.dtype}, which is not merged"
                raise BadInput(Fault("", wrong, "take the file of the whole numbers, as fp16"))
            tensors[name] = tensor
        else:
            carried[name] = tensor
    if not tensors:
        raise BadInput(Fault("", f"{file}: holds no tensors", "download it again"))
    return SingleFile(tensors, carried, chosen)


def _named(stored: Mapping[str, Tensor], part: str) -> list[str]:
    return [name for name in stored if name.startswith(f"{part}.")]
