"""What is known of models beside their weights, read once: layers' inputs, and curvature.

What models read of texts is kept as safetensors in `$XDG_CACHE_HOME/evomerge/observed`, by the
hashes of the model, of the frame in which it is merged and of the texts, in float32.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from evomerge.cache.eviction import make_room
from evomerge.cache.holding import hold
from evomerge.canonical import canonical_json
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, EvomergeError, Fault, one_line
from evomerge.merging.adam_moments import adam_moments, with_rows
from evomerge.merging.live_model import Live, open_live_model
from evomerge.merging.observed_curvature import fisher_of
from evomerge.merging.observed_inputs import inputs_of, transposed_weights
from evomerge.node.once import one_at_a_time
from evomerge.node.phases import Steps, phase
from evomerge.sources.safetensors_file import read_header
from evomerge.sources.source import Source
from evomerge.sources.texts import LONGEST, read_texts
from evomerge.whole_files import written_beside

_VERSION = 1  # of what is observed and of the files

_Observed = tuple[dict[str, torch.Tensor], dict[str, Any]]  # tensors by name, and what to know


class LinearInputs(NamedTuple):
    """What each model's linear layer took in.

    Attributes:
        grams: X^T X / n of a model's n inputs, (in, in) float32, or its diagonal, (in,).
        transposed: whether the weight is (in, out).

    >>> LinearInputs([torch.eye(2)], transposed=False).grams[0].shape
    torch.Size([2, 2])
    """

    grams: list[torch.Tensor]
    transposed: bool


class KeptInputs(NamedTuple):
    """A file of what a model's linear layers took in.

    Attributes:
        path: of the file, in the cache.
        matrices: how many it holds.

    >>> KeptInputs(Path("0f.safetensors"), 9).matrices
    9
    """

    path: Path
    matrices: int


class Observations:
    """What is known of some models in one frame.

    A model reads its texts as it would in a merge: in the frame's architecture, with the frame's
    tokenizer.

    >>> from evomerge.testing.observed import example_observations
    >>> example_observations().inputs("model.layers.0.mlp.up_proj.weight").grams[0].shape
    torch.Size([16, 16])
    """

    def __init__(
        self,
        frame: Source,
        models: Sequence[str],
        sources: Sequence[Source],
        hashes: Mapping[str, str],
        tensor: Callable[[str, str], torch.Tensor],
        frame_name: str | None = None,
    ):
        """
        Args:
            frame: the base.
            models: names of sources.
            sources: theirs.
            hashes: of the sources' contents, the frame's too, by name.
            tensor: gives a source's tensor by both names.
            frame_name: as `hashes` has it; the frame's own by default.
        """
        self._frame, self._models, self._sources = frame, list(models), list(sources)
        self._hashes, self._tensor = dict(hashes), tensor
        self._frame_name = frame.name if frame_name is None else frame_name
        self._live: Live | None = None
        self._files: dict[Path, Any] = {}  # as safetensors opens them; it has no types
        self._moments: dict[int, dict[str, torch.Tensor]] = {}
        self._transposed: set[str] | None = None  # weights that are (in, out)

    def inputs(self, name: str) -> LinearInputs | None:
        """Return what each model's linear layer of one weight took in; None of other tensors.

        From the `inputs` that a model comes with, else from its texts.

        Raises:
            BadInput: the texts cannot be read by the frame.
        """
        grams = []
        for i, source in enumerate(self._sources):
            given = source.evidence.files.get("inputs")
            file = self._file(given) if given else self._observed(i, "inputs", inputs_of)
            about = json.loads((file.metadata() or {}).get("evomerge", "{}"))
            # safetensors' object knows no `in`
            held = set(file.keys())
            keys = [about.get("same", {}).get(key, key) for key in (name, source.prefix + name)]
            key = next((key for key in keys if key in held), None)
            if key is None:
                return None
            grams.append(file.get_tensor(key).float())
        if len({gram.dim() for gram in grams}) > 1:  # of some models the diagonal is all there is
            grams = [gram if gram.dim() == 1 else gram.diagonal().clone() for gram in grams]
        if self._transposed is None:
            self._transposed = transposed_weights(self._frame)
        return LinearInputs(grams, name in self._transposed)

    def observed_inputs(self, i: int) -> KeptInputs:
        """Return the file of what a model's layers take in of its texts.

        Raises:
            BadInput: the texts cannot be read by the frame.
        """
        file = self._observed(i, "inputs", inputs_of)
        return KeptInputs(self._path(i, "inputs"), len(file.keys()))

    def curvature(self, name: str) -> list[torch.Tensor] | None:
        """Return each model's diagonal curvature at one tensor, of its shape; None if unknown.

        Adam's second moments where a model comes with them, else the
        diagonal of its Fisher information over its texts.

        Raises:
            BadInput: the texts or the moments cannot be read.
        """
        found = []
        for i, source in enumerate(self._sources):
            if "moments" in source.evidence.files:
                held = self._moments_of(i)
                if name not in held:
                    return None
                found.append(held[name].float())
                continue
            file = self._observed(i, "curvature", fisher_of)
            if name not in file.keys():  # noqa: SIM118
                return None
            found.append(file.get_tensor(name))
        return found

    def live(self) -> Live:
        """Return the frame's model in float32, to be filled.

        Raises:
            BadInput: it is no language model with a tokenizer.
        """
        if self._live is None:
            device = str(self.tensor(0, next(iter(self._frame.tensors))).device)
            live = open_live_model(self._frame, "float32", device)
            if live.tokenizer is None:
                mend = "save the tokenizer into its directory"
                wrong = f"texts need a tokenizer, and '{self._frame.name}' has none"
                raise BadInput(Fault("base", wrong, mend))
            self._live = live
        return self._live

    def fill(self, i: int) -> Live:
        """Return the live model with one model's weights."""
        live = self.live()
        names = self._frame.tensors
        live.load((name, self.tensor(i, name)) for name in names)
        return live

    def tensor(self, i: int, name: str) -> torch.Tensor:
        """Return one model's tensor."""
        return self._tensor(self._models[i], name)

    def tokens(self, i: int) -> list[torch.Tensor]:
        """Return the texts of one model as (1, tokens) int64, on the live model's device.

        Raises:
            BadInput: the model comes with none.
        """
        source = self._sources[i]
        if "texts" not in source.evidence.files:
            mend = "write {model: ..., texts: FILE}"
            raise BadInput(Fault("", f"'{source.name}' comes without texts", mend))
        live = self.live()
        assert live.tokenizer is not None, "`live` has seen to it"
        longest = getattr(live.model.config, "max_position_embeddings", None) or LONGEST
        found = []
        for text in read_texts(source.evidence.files["texts"]):
            encoded = live.tokenizer(
                text.prompt, return_tensors="pt", truncation=True, max_length=min(longest, LONGEST)
            )
            if encoded.input_ids.shape[1]:
                found.append(encoded.input_ids.to(live.model.device))
        if not found:
            wrong = f"the tokenizer makes no token of '{source.evidence.files['texts']}'"
            raise BadInput(Fault("texts", wrong, "write texts that it knows"))
        return found

    def _observed(
        self,
        i: int,
        kind: str,
        observe: Callable[[Live, Sequence[torch.Tensor], Steps], _Observed],
    ) -> Any:
        """Return the file of what a model read, which is made if it is not kept yet."""
        path = self._path(i, kind)
        if path in self._files:
            return self._files[path]
        hold(path)
        doing = f"reading the texts of '{self._models[i]}' for {kind}"
        try:
            with one_at_a_time(path.with_suffix(".lock"), doing):
                if not _is_whole(path):
                    self._observe(i, observe, path, doing)
        except (OSError, SafetensorError) as error:  # a full disk is either
            wrong = f"what models read cannot be kept in {path.parent}: {one_line(error)}"
            raise EvomergeError(wrong) from error
        return self._file(path)

    def _observe(
        self,
        i: int,
        observe: Callable[[Live, Sequence[torch.Tensor], Steps], _Observed],
        path: Path,
        doing: str,
    ) -> None:
        """Let a model read its texts; keep what that gives."""
        phase(doing)
        live, tokens = self.fill(i), self.tokens(i)
        tensors, about = observe(live, tokens, Steps(doing, "texts", len(tokens)))
        make_room(sum(tensor.nbytes for tensor in tensors.values()))
        with written_beside(path) as temporary:
            save_file(tensors, temporary, {"evomerge": json.dumps(about)})

    def _path(self, i: int, kind: str) -> Path:
        model, frame = self._hashes[self._models[i]], self._hashes[self._frame_name]
        key = canonical_json([_VERSION, kind, model, frame, LONGEST])
        named = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cache_folder("observed") / f"{named}.safetensors"

    def _moments_of(self, i: int) -> dict[str, torch.Tensor]:
        if i not in self._moments:
            source = self._sources[i]
            held = adam_moments(source.evidence.files["moments"], source, self.live)
            shapes = {name: tensor.shape for name, tensor in self._frame.tensors.items()}
            fitting = {name: with_rows(held[name], shapes[name]) for name in shapes if name in held}
            self._moments[i] = fitting
        return self._moments[i]

    def _file(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                wrong = f"'{path}' cannot be read ({one_line(error)})"
                raise EvomergeError(wrong) from error
        return self._files[path]


def _is_whole(path: Path) -> bool:
    """Tell whether a kept file is there, and can be read; a damaged one is made anew."""
    try:
        read_header(path)
    except (OSError, ValueError):
        return False
    return True
