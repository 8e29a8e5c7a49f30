"""An opened source: what is known of a model by its headers, whatever its layout on disk."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from evomerge.dtypes import CODES, SIZE, STORED_DTYPES
from evomerge.sources.evidence import NOTHING, Evidence
from evomerge.sources.factory import Factory
from evomerge.sources.lora import Adapter
from evomerge.sources.named_parts import with_parts
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.signs import StoredSigns
from evomerge.tensor_names import count_layers

# What a config says of its own history, not of the model.
CONFIG_NOISE = {
    "_name_or_path", "transformers_version", "_diffusers_version", "torch_dtype", "dtype",
    "factory",
}  # fmt: skip

Form = Literal["transformers", "sentence", "diffusers", "pipeline", "file"]


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
        form: in which layout it lies, which is that of its merges.
        parts: those alone that are merged, where its name says so; see `named_parts`.
        prefix: what the names of tensors begin with in its own checkpoint, and not here.
        components: of a pipeline, those that are merged, by their folders.
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
    form: Form = "transformers"
    parts: tuple[str, ...] = ()
    prefix: str = ""
    components: "dict[str, Source]" = field(default_factory=dict, repr=False)
    evidence: Evidence = NOTHING
    signs: dict[str, StoredSigns] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> str:
        """The local directory or directories, written as `open_source` takes them."""
        if self.factory is not None:
            return self.factory.place
        model = str(self.path.resolve())
        if self.adapter is not None:
            model = f"{model}+{self.adapter.path.resolve()}"
        return with_parts(model, self.parts) + self.evidence.resolved.suffix

    @property
    def stored(self) -> list[tuple[str, Tensor]]:
        """Every stored tensor with a label, its name there; the adapter's after the model's."""
        if self.unaligned is not None:
            return self.unaligned.stored
        own = [*self.tensors.items(), *self.carried.items()]
        if self.components:  # which have tensors of the same names
            return own
        labelled = [(tensor.key or name, tensor) for name, tensor in own]
        if self.adapter is not None:
            labelled += self.adapter.tensors
        labelled += [(signs.codes.key, signs.codes) for signs in self.signs.values()]
        return labelled

    @property
    def is_image_model(self) -> bool:
        """Whether it is no model of transformers, alone or with modules behind it."""
        return self.form in ("diffusers", "pipeline", "file")

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
        """How many layers it has; several models that are merged together have no depth."""
        several = self.form in ("pipeline", "file") and len(self.parts) > 1
        return 0 if several else count_layers(self.tensors)

    def saved_name(self, name: str) -> str:
        """Return the name of a tensor in its own checkpoint.

        >>> tensor = Tensor("F32", (2,), Path("model.safetensors"), "bert.encoder.x", 0, 8)
        >>> source = Source("a", Path("a"), {}, {"encoder.x": tensor}, {}, prefix="bert.")
        >>> source.saved_name("encoder.x"), source.saved_name("classifier.bias")
        ('bert.encoder.x', 'classifier.bias')
        """
        return self.prefix + name if name in self.tensors else name

    @property
    def bytes(self) -> int:
        """How many bytes its weights take on disk."""
        return sum(tensor.bytes for _, tensor in self.stored)

    @property
    def merged_bytes(self) -> int:
        """How many of them are merged: the decoder of images beside a denoiser is not."""
        return self.bytes - sum(tensor.bytes for tensor in self.carried.values())
