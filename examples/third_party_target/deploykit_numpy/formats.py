"""The precision that this distribution adds, `int12-weight-only`, and how twelve-bit integers are stored.

`pyproject.toml` registers `INT12`; deploykit itself has no line about it.
"""

from __future__ import annotations

import numpy as np

from deploykit.contract.formats import FLOAT32, Format, PerAxis, TensorScheme

INT12 = Format(
    summary="int12 weights, two in three bytes; activations stay float",
    weights=TensorScheme("int12", quant_min=-2047, quant_max=2047, granularity=PerAxis()),
    activations=FLOAT32,
    further=("int8-weight-only",),
    gentler=("fp32",),
    # Seeded networks of 3 to 7 layers reach 66 to 78 dB, and 44 to 55 dB with weights of 8 bits: the gate is between.
    min_sqnr_db=60.0,
    min_cosine=0.99999,
    min_equal=0.99,
)
_MIDDLE = 2048


def pack(values: np.ndarray) -> np.ndarray:
    """Store two integers of 12 bits in three bytes, the first one in the low bits.

    Args:
        values: integer (rows, columns), -2048 to 2047.

    Returns:
        uint8 (rows, 3 * ceil(columns / 2)); a last column without a partner has zero beside it.
    """
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).astype(np.int32) + _MIDDLE
    first, second = even[:, 0::2], even[:, 1::2]
    triples = np.stack([first & 255, first >> 8 | (second & 15) << 4, second >> 4], axis=-1)
    return triples.reshape(len(values), -1).astype(np.uint8)


def unpack(packed: np.ndarray, columns: int) -> np.ndarray:
    """The inverse of `pack`.

    Args:
        packed: uint8 (rows, 3 * ceil(columns / 2)).

    Returns:
        int16 (rows, columns).
    """
    low, middle, high = packed.reshape(len(packed), -1, 3).astype(np.int16).transpose(2, 0, 1)
    pairs = np.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], axis=-1)
    return (pairs.reshape(len(packed), -1)[:, :columns] - _MIDDLE).astype(np.int16)
