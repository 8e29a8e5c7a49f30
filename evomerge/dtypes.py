"""The dtypes of weights: as recipes write them, as safetensors does, and their bits."""

from typing import Literal, get_args

Dtype = Literal["bfloat16", "float16", "float32", "float64"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

STORED_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}

CODES = {dtype: code for code, dtype in STORED_DTYPES.items()}  # "bfloat16" -> "BF16"

# bytes; of integers too, which some models keep beside their weights
SIZE = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8,
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8,
}  # fmt: skip

PACKED = 64  # elements that packed bits are filled up to a multiple of: whole words

INTEGER = {2: "<u2", 4: "<u4", 8: "<u8"}  # numpy's, by bytes

# The exponent's bits, all of which are set in infinities and NaN alone: of 8 bits (as in float32),
# 5, 8 and 11 (IEEE 754-2008, table 3.5), below the sign and above the fraction.
EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}


def packed_bytes(elements: int, bits: int) -> int:
    """Return the bytes of a tensor of which each element takes a few bits.

    >>> packed_bytes(100, bits=1), packed_bytes(100, bits=2)
    (16, 32)
    """
    return -(-elements // PACKED) * PACKED * bits // 8
