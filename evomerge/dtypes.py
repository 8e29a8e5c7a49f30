"""The dtypes of weights: as recipes write them, as safetensors does, and their bits."""

import numpy as np

STORED_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}

SIZE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}

INTEGER = {2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}

EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}

DTYPES = ("bfloat16", "float16", "float32", "float64")
