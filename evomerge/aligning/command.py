"""All that `evomerge align` does, as one call."""

from pathlib import Path
from typing import Any

from evomerge.aligning.aligned_model import (
    MODEL,
    Alignment,
    align,
    check_out,
    open_pair,
    write_aligned,
)
from evomerge.aligning.line import FunctionScore, Judge, TextLoss, walk
from evomerge.errors import BadInput, Fault
from evomerge.sources.trust import NOBODY, Trust


def run(
    out: Path,
    trust: Trust = NOBODY,
    *,
    reference: str,
    model: str,
    stream: bool = False,
    seed: int = 0,
    texts: Path | None = None,
    fitness: Path | None = None,
    minimize: bool = False,
) -> dict[str, Any]:
    """Align a model with a reference, write it, and walk the line between the two if asked to.

    Args:
        out: see `write_aligned`.
        trust: what code of the models may run.
        reference, model: as `open_source` takes them.
        stream, seed: see `align`.
        texts: to walk the line by the loss on these.
        fitness: to walk it by this Python fitness, instead of texts.
        minimize: the fitness is a loss.

    Returns:
        What `--json` prints.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = (str(tiny_llama(f"{folder}/{seed}", seed)) for seed in (0, 1))
    ...     found = run(Path(folder, "out"), reference=a, model=b)
    >>> sorted(found)
    ['line', 'units', 'weights']
    """
    judge: Judge | None = None
    if texts is not None and fitness is not None:
        raise BadInput(Fault("--fitness", "is given beside --texts", "give one of the two"))
    if texts is not None:
        judge = TextLoss(texts)
    elif fitness is not None:
        judge = FunctionScore(fitness, minimize)
    pair = open_pair(reference, model, trust)
    check_out(pair.model, out)
    alignment = align(pair, stream=stream, seed=seed)
    record: dict[str, Any] = {"kind": "aligned", "model": model, "reference": reference}
    record |= {"stream": stream, "seed": seed}
    line = None if judge is None else _lines(alignment, judge)
    checksum = write_aligned(alignment, out, record)
    kinds = {name: kind._asdict() for name, kind in alignment.kinds.items()}
    return {"weights": checksum, "units": kinds, "line": line}


def _lines(alignment: Alignment, judge: Judge) -> dict[str, Any]:
    """Return what is found between the reference and the model before and after alignment."""
    pair = alignment.pair
    before = walk(pair, lambda name: pair.weights.tensor(MODEL, name), judge)
    after = walk(pair, alignment.tensor, judge)
    return {"measure": judge.measure, "before": before._asdict(), "after": after._asdict()}
