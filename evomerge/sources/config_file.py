"""A transformers model's config.json, as far as it may be believed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import Fault, Faults
from evomerge.sources.locate import what_it_is_instead
from evomerge.sources.model_class import is_known
from evomerge.sources.safetensors_file import read_json
from evomerge.sources.trust import Trust

# Of code that a config names, what is needed where transformers knows the model itself.
_NOT_OF_MODELS = {"AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"}

TRUST_MEND = "set sources.trust_remote_code: true, or give --trust-code, if you trust it"


def read_config(path: Path, trust: Trust, faults: Faults) -> dict[str, Any]:
    """Return a transformers model's config.json, without what is no property of the model.

    Args:
        path: the model's directory.
        trust: whether code that it names may run.
        faults: gets what is wrong; the config is empty then.

    >>> faults = Faults()
    >>> read_config(Path("nowhere"), Trust(), faults), len(faults.found)
    ({}, 1)
    """
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        wrong = f"{path}: config.json is missing or not JSON"
        instead = what_it_is_instead(path)
        faults.extend([instead or Fault("", wrong, "write a Hugging Face model directory")])
        return {}
    config = without_kernels(config)
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
        faults.add("", f"{path}: config.json asks to run code of its own", TRUST_MEND)
    return config


def without_kernels(config: Any) -> Any:
    """Return a config without the names of kernels on the hub, whose code transformers would run.

    What attention is computed by is no property of a model.

    >>> without_kernels({"attn_implementation": "kernels-community/flash-attn", "n_layer": 2})
    {'n_layer': 2}
    """
    if not isinstance(config, dict):
        return config
    kept = {}
    for key, value in config.items():
        is_kernel = key.endswith("_implementation") and isinstance(value, str) and "/" in value
        if not is_kernel:
            kept[key] = without_kernels(value)
    return kept
