"""The files of a model's directory that belong to it beside weights and config.json.

A merged model gets those of its frame: tokenizer, processors, chat templates, licence, and code
where the directory has code of its own.
"""

from collections.abc import Iterator
from pathlib import Path

from evomerge.errors import Fault
from evomerge.sources.safetensors_file import read_json

# By their endings: settings, templates, vocabularies of all kinds. Weights, whatever their format,
# READMEs, pictures and logs are none of these.
_KINDS = {
    ".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".spm", ".bpe", ".merges",
}  # fmt: skip

_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")

# What is written anew, or says how the frame itself was made.
_ITS_OWN = {
    "config.json", "recipe.json", "made_by.json", "adapter_config.json", "trainer_state.json",
    "training_args.json",
    "all_results.json", "train_results.json", "eval_results.json", "quantize_config.json",
    "requirements.txt",
}  # fmt: skip

_FOLDERS = ("additional_chat_templates",)  # where transformers keeps templates with names

_CODE_IN = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def companions(path: Path, has_code: bool = False) -> list[Path]:
    """Return the files that a merged model gets from its frame's directory, relative to it.

    Args:
        path: the directory.
        has_code: whether config.json names code of its own.

    >>> companions(Path("nowhere"))
    []
    """
    has_code = has_code or any(_names_code(path / name) for name in _CODE_IN)
    found = []
    for file in _files_in(path):
        is_code = file.suffix == ".py" and has_code
        is_kind = file.suffix in _KINDS and not file.name.endswith(".index.json")
        if is_code or file.name.startswith(_LEGAL) or (is_kind and file.name not in _ITS_OWN):
            found.append(file.relative_to(path))
    for folder in (*_FOLDERS, *_modules(path)):
        for file in _files_in(path / folder):
            if file.suffix in _KINDS:
                found.append(file.relative_to(path))
    return found


def _files_in(folder: Path) -> Iterator[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    for file in inside:
        if file.is_file() and not file.name.startswith(("README", ".")):
            yield file


def _names_code(file: Path) -> bool:
    settings = read_json(file)
    return isinstance(settings, dict) and bool(settings.get("auto_map"))


def _modules(path: Path) -> list[str]:
    """Return the folders of a sentence-transformers model's modules, of those that lie within."""
    listed = read_json(path / "modules.json")
    folders = []
    for module in listed if isinstance(listed, list) else []:
        folder = module.get("path") if isinstance(module, dict) else None
        if isinstance(folder, str) and folder and Path(folder).name == folder:
            folders.append(folder)
    return folders


def whole_of(path: Path) -> Path:
    """Return the directory in which what a model's directory links to may lie.

    That is itself; in the hub's cache the repository's, as each file is a link to a blob there.

    Args:
        path: of a model, or of a component of one in a folder of its own.

    >>> whole_of(Path("/hub/models--org--sdxl/snapshots/c0ffee/unet")).as_posix()
    '/hub/models--org--sdxl'
    >>> whole_of(Path("/home/me/snapshots/sdxl/unet")).as_posix()  # anybody's folder
    '/home/me/snapshots/sdxl/unet'
    """
    home = path.resolve()
    for snapshot in (home, home.parent):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            return repository
    return home


def link_faults(path: Path, has_code: bool = False) -> list[Fault]:
    """Return the files that a merged model would get and that lie elsewhere, by a link.

    A stranger's directory could name any file of this machine so, and an export would publish it.

    Args:
        path, has_code: see `companions`.

    >>> link_faults(Path("nowhere"))
    []
    """
    home = whole_of(path)
    faults = []
    for name in (Path("config.json"), *companions(path, has_code)):
        target = (path / name).resolve()
        if not target.is_relative_to(home):
            wrong = f"{path}: {name} is a link to {target}, out of the model's directory"
            faults.append(Fault("", wrong, "put the file itself there"))
    return faults
