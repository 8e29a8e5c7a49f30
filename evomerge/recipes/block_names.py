"""The blocks of image models by the names that people there have for them.

A group of tensors in a recipe is a substring of their names, or one of these:

- `IN00`, `MID`, `OUT11`: a UNet's blocks, numbered as in the files of Stable Diffusion and its kin
  (`input_blocks.0`, `middle_block`, `output_blocks.11`), whichever library's names the tensors
  have. diffusers parts them into `down_blocks` and `up_blocks` of two and three layers each.
- `DOUBLE00`, `SINGLE00`: the two kinds of blocks of Flux (`double_blocks` and `single_blocks`, or
  diffusers' `transformer_blocks` and `single_transformer_blocks`).
- `BLOCK00`: a block of transformers of one kind, such as SD3, PixArt and DiT.

A run of blocks, `IN04-IN08`, is one group.
"""

import functools
import re
from collections.abc import Callable

_LABEL = r"(?:IN|OUT|DOUBLE|SINGLE|BLOCK)\d\d"
_GROUP = re.compile(rf"MID|(?P<first>{_LABEL})(?:-(?P<last>{_LABEL}))?")

# What stands before a block's name: nothing, or the denoiser's place in a pipeline or a file.
_ROOT = r"^(?:model\.diffusion_model\.|diffusion_model\.|unet\.|transformer\.)?"

_Numbered = Callable[[re.Match[str]], int]


def _as_it_is(match: re.Match[str]) -> int:
    return int(match[1])


# diffusers' `convert_ldm_unet_checkpoint` has the same the other way round: block i of a file,
# i = 1 + 3 b + l, is layer l of down block b, of two layers and a downsampler; block i = 3 b + l
# on the way up is layer l of up block b, of three layers, the last of which has the upsampler.
_BLOCKS: tuple[tuple[str, re.Pattern[str], _Numbered], ...] = tuple(
    (label, re.compile(_ROOT + pattern), number)
    for label, pattern, number in (
        ("IN", r"input_blocks\.(\d+)\.", _as_it_is),
        ("IN", r"conv_in\.", lambda match: 0),
        (
            "IN",
            r"down_blocks\.(\d+)\.(?:resnets|attentions)\.(\d+)\.",
            lambda match: 1 + 3 * int(match[1]) + int(match[2]),
        ),
        ("IN", r"down_blocks\.(\d+)\.downsamplers\.", lambda match: 3 * (int(match[1]) + 1)),
        ("OUT", r"output_blocks\.(\d+)\.", _as_it_is),
        (
            "OUT",
            r"up_blocks\.(\d+)\.(?:resnets|attentions)\.(\d+)\.",
            lambda match: 3 * int(match[1]) + int(match[2]),
        ),
        ("OUT", r"up_blocks\.(\d+)\.upsamplers\.", lambda match: 3 * int(match[1]) + 2),
        ("DOUBLE", r"(?:double_blocks|transformer_blocks)\.(\d+)\.", _as_it_is),
        ("SINGLE", r"single_(?:transformer_)?blocks\.(\d+)\.", _as_it_is),
        ("BLOCK", r"(?:joint_blocks|transformer_blocks|blocks)\.(\d+)\.", _as_it_is),
    )
)

_MIDDLE = re.compile(_ROOT + r"mid(?:dle)?_block\.")


def is_block(group: str) -> bool:
    """Tell whether a group's name is that of blocks, and no substring.

    >>> is_block("IN04"), is_block("MID"), is_block("DOUBLE00-DOUBLE09"), is_block("attn1")
    (True, True, True, False)
    """
    return _GROUP.fullmatch(group) is not None


@functools.lru_cache(maxsize=1 << 16)
def holds(group: str, name: str) -> bool:
    """Tell whether a tensor is of a group.

    Args:
        group: a substring of names, or the name of a block or a run of blocks.
        name: of the tensor.

    >>> holds("mlp", "model.layers.3.mlp.up_proj.weight")
    True
    >>> unet = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    >>> holds("IN04", unet), holds("IN01-IN03", unet), holds("IN03-IN05", unet)
    (True, False, True)
    """
    match = _GROUP.fullmatch(group)
    if match is None:
        return group in name
    if match["first"] is None:
        return _MIDDLE.match(name) is not None
    first, last = match["first"], match["last"] or match["first"]
    kind = first.rstrip("0123456789")
    if not last.startswith(kind):
        return False
    number = _number(kind, name)
    return number is not None and int(first[len(kind) :]) <= number <= int(last[len(kind) :])


def _number(kind: str, name: str) -> int | None:
    """Return the number of the block of a kind that a tensor is of, if it is of one."""
    for label, pattern, number in _BLOCKS:
        if label == kind and (match := pattern.match(name)):
            return number(match)
    return None
