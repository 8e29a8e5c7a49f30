"""Which library loads a model's folder, as the folder itself says, and by which call."""

from pathlib import Path

from evomerge.sources import pipelines, sentence_modules
from evomerge.sources.diffusers_models import is_diffusers
from evomerge.sources.safetensors_file import read_json


def library_of(path: Path) -> str:
    """Return the library of a model, as the hub calls it; "" of a file that no library has made.

    Args:
        path: of the model.

    >>> library_of(Path("nowhere")), library_of(Path("dream.safetensors"))
    ('transformers', '')
    """
    if path.suffix == ".safetensors":
        return ""
    if (path / pipelines.INDEX).is_file() or is_diffusers(_config(path)):
        return "diffusers"
    if (path / sentence_modules.INDEX).is_file():
        return "sentence-transformers"
    return "transformers"


def loading_call(path: Path) -> str:
    """Return the call by which an exported model is loaded, as one writes it in Python.

    >>> loading_call(Path("merged"))
    'AutoModelForCausalLM.from_pretrained("merged")'
    """
    config = _config(path)
    match library_of(path):
        case "sentence-transformers":
            return f'SentenceTransformer("{path}")'
        case "diffusers":
            name = config.get("_class_name", "DiffusionPipeline")
            return f'{name}.from_pretrained("{path}")'
    if path.is_dir() and not (path / "config.json").exists():
        return f'load_file("{path / sentence_modules.WEIGHTS}")'
    listed = config.get("architectures")
    name = listed[0] if isinstance(listed, list) and listed else ""
    if not isinstance(name, str) or not name or name.endswith("ForCausalLM"):
        name = "AutoModelForCausalLM"
    return f'{name}.from_pretrained("{path}")'


def _config(path: Path) -> dict[str, object]:
    config = read_json(path / "config.json")
    return config if isinstance(config, dict) else {}
