"""What a model's layers take in, as a file that can be shared where its texts cannot."""

import shutil
from pathlib import Path

import torch

from evomerge.errors import BadInput, Fault
from evomerge.merging.observations import Observations
from evomerge.merging.source_weights import SourceWeights
from evomerge.sources.alignment import aligned
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.sources.trust import NOBODY, Trust
from evomerge.whole_files import written_beside


def write_inputs(
    model: str, texts: Path, out: Path, base: str | None = None, trust: Trust = NOBODY
) -> int:
    """Let a model read texts; write the Gram matrices of its linear layers' inputs.

    Args:
        model: as `open_source` takes it.
        texts: see `sources.evidence`.
        out: a safetensors file that is not there yet, which `{model: ..., inputs: FILE}` takes.
        base: in whose shape and by whose tokenizer it reads, as in a merge; the model's own by
            default.
        trust: what code of the models may run.

    Returns:
        How many layers' inputs it holds; those that take in the same count once.

    Raises:
        BadInput: a model or the texts will not do, or `out` is there.

    >>> import tempfile
    >>> from evomerge.testing.campaigns import example_folder
    >>> from evomerge.testing.observed import example_texts
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = str(example_folder() / "a")
    ...     write_inputs(model, example_texts(9), Path(folder, "inputs.safetensors"))
    9
    """
    if out.exists():
        raise BadInput(Fault("", f"'{out}' is there already", "write a new file's path"))
    name = f"{model}?texts={texts}"
    frame = open_source(base or model, trust)
    source = aligned(frame, open_source(name, trust))
    sources = {frame.name: frame, name: source}
    hashes = {key: digest(one).sha256 for key, one in sources.items()}
    weights = SourceWeights(sources, torch.device("cpu"))
    known = Observations(frame, [name], [source], hashes, weights.tensor)
    file = known.observed_inputs(0)
    with written_beside(out) as temporary:
        shutil.copyfile(file.path, temporary)
    return file.matrices
