"""What anyone needs to test a merge method, a space or a controller: tiny real models, and
the laws that every one of them must pass, ours and yours.

    from evomerge.testing import controller_laws
    for law in controller_laws: law("my_controller")
"""

from evomerge.testing.controllers import controller_laws, drive, sphere, spheres
from evomerge.testing.methods import merge_arrays, method_laws, recipe_of
from evomerge.testing.tiny import WORDS, tiny_llama, tiny_tokenizer

__all__ = [
    "WORDS",
    "controller_laws",
    "drive",
    "merge_arrays",
    "method_laws",
    "recipe_of",
    "sphere",
    "spheres",
    "tiny_llama",
    "tiny_tokenizer",
]
