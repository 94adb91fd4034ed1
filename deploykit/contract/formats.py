"""What a precision is, as data: one `Format` a precision, and everything that is known of it follows from the row.

    Format(weights=INT8_CHANNELS, activations=INT8_AFFINE, ranges="static", min_sqnr_db=18.0, ...)

The gate of parity, the names under which a produced file may count it, what to try instead, and whether calibration
data is needed are fields and properties of the row; no module keeps a table of precisions beside it. A distribution
of its own registers a row under the entry-point group `deploykit.precisions` (`deploykit.contract.precision`).

Data only: how a format is computed is said by the targets that have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of an axis.

    Attributes:
        axis: the axis; None is the axis that holds the output channels of the op.
    """

    axis: int | None = None


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of neighbouring elements along the axis that is summed over.

    Attributes:
        size: elements in a run; 0 is the whole axis.
    """

    size: int


@dataclass(frozen=True)
class TensorScheme:
    """How one kind of tensor is stored: integers with a scale, indices into a palette, or floats.

    Attributes:
        dtype: `int8`, `uint8`, `int16`, `int4`; `palette4` (indices of 4 bits into a table of 16 values); `float32`,
            `float16`, `bfloat16`, `float8_e4m3fn`. The first number of the name is its width in bits.
        symmetric: zero-point fixed in the middle (0 where signed), else affine.
        quant_min, quant_max: values used, inclusive; narrower than the dtype restricts the range. Both 0 for
            floats that have no scale.
        granularity: the granularity of scale and zero-point, or of the palette.
        furthest: the element of largest magnitude becomes `quant_min`, whatever its sign: the scale takes that sign.
    """

    dtype: str
    symmetric: bool = True
    quant_min: int = 0
    quant_max: int = 0
    granularity: PerTensor | PerAxis | PerGroup = PerTensor()
    furthest: bool = False

    def __post_init__(self) -> None:
        if not re.search(r"[1-9]", self.dtype):
            raise ValueError(f"dtype {self.dtype!r} does not say its width in bits, as int8 and float16 do")

    @property
    def bits(self) -> int:
        """Width of one element, as the dtype's name says it: 8 of `uint8`, 6 of `palette6`, 16 of `bfloat16`."""
        return int(re.findall(r"\d+", self.dtype)[0])

    @property
    def bytes(self) -> float:
        """Width of one element in bytes; 0.5 of `int4`."""
        return self.bits / 8

    @property
    def is_float(self) -> bool:
        """Whether elements are floating-point numbers, those of 8 bits with a scale too."""
        return "float" in self.dtype

    @property
    def is_palette(self) -> bool:
        """Whether elements are indices into a table of values."""
        return "palette" in self.dtype


FLOAT32, FLOAT16, BFLOAT16 = (TensorScheme(dtype) for dtype in ("float32", "float16", "bfloat16"))
UINT8_AFFINE = TensorScheme("uint8", symmetric=False, quant_min=0, quant_max=255)
INT8_AFFINE = TensorScheme("int8", symmetric=False, quant_min=-128, quant_max=127)
INT8_SYMMETRIC = TensorScheme("int8", symmetric=True, quant_min=-127, quant_max=127)
INT8_CHANNELS = replace(INT8_SYMMETRIC, granularity=PerAxis())
# One scale for each channel too, in files whose writer divides by it, where q/dq graphs multiply by its reciprocal.
INT8_DIVIDED = replace(INT8_CHANNELS, granularity=PerGroup(0))
INT4_CHANNELS = TensorScheme("int4", quant_min=-7, quant_max=7, granularity=PerAxis())
# Of inputs that a kernel rounds when it runs: one scale for each row of a matrix, for each sample, for the tensor.
INT8_ROWS = replace(INT8_AFFINE, granularity=PerGroup(0))
INT8_SAMPLES = replace(INT8_AFFINE, granularity=PerAxis(0))
INT16_SYMMETRIC = TensorScheme("int16", quant_min=-32767, quant_max=32767)
FLOAT8 = TensorScheme("float8_e4m3fn", quant_min=-448, quant_max=448)
FLOAT8_CHANNELS = replace(FLOAT8, granularity=PerAxis())
PALETTE4 = TensorScheme("palette4", symmetric=False, quant_min=0, quant_max=15)
PALETTE6 = TensorScheme("palette6", symmetric=False, quant_min=0, quant_max=63)


def placed_as(weight: TensorScheme, inputs: TensorScheme | None) -> str:
    """The name that a layer placed in these forms is counted under; see `Format.counts_as`.

    Args:
        inputs: what its activations are rounded to; None where its weight alone is stored narrow.
    """
    if inputs is None:
        return f"{weight.bits}-bit palette" if weight.is_palette else f"int{weight.bits}-weights"
    if inputs.is_float:
        return f"fp{inputs.bits}"
    return f"int{inputs.bits}" if inputs.bits == weight.bits else f"int{inputs.bits}x{weight.bits}"


GENTLER = ("int8-dynamic", "int8-weight-only", "fp16", "bf16", "fp32")
"""Precisions by what they lose, most first."""

_INTEGERS = re.compile(r"u?int(?P<bits>\d+)(?P<held>-weights)?|(?P<palette>\d+)-bit palette")


@dataclass(frozen=True, kw_only=True)
class Format:
    """One precision.

    A row says the widths and what is promised of them. A target's scheme may choose another form of the same width,
    as its kernels take it: uint8 activations on x86, groups of 32 where the row has channels.

    Attributes:
        summary: one line.
        weights, activations: how the tensors of quantised layers are stored; both of one float type where the whole
            model is in it.
        min_sqnr_db, min_cosine, min_equal: gate of parity against the float model, see `deploykit.Tolerance`.
        ranges: the ranges of activations: `none` where they have no scale, `static` where they are fixed at export, so
            that calibration data is needed, `dynamic` where they are found at run time.
        rest: dtype of what is not quantised, where the target has the choice.
        counted: names that a layer of this precision has as counted in a produced file, where `counts_as` would not
            find them by their bits.
        further: names of precisions that other, or more, kinds of layers have, the nearest first.
        gentler: names of precisions that lose less, those that lose most first.
    """

    summary: str
    weights: TensorScheme
    activations: TensorScheme
    min_sqnr_db: float
    min_cosine: float
    min_equal: float
    ranges: Literal["none", "static", "dynamic"] = "none"
    rest: Literal["float32", "float16", "bfloat16"] = "float32"
    counted: frozenset[str] = frozenset()
    further: tuple[str, ...] = ()
    gentler: tuple[str, ...] = GENTLER

    @property
    def is_static(self) -> bool:
        """Whether activation ranges are fixed at export, so that calibration data is required."""
        return self.ranges == "static"

    @property
    def is_whole(self) -> bool:
        """Whether it is a float type of the whole model: no layer is quantised, so none can be left out."""
        return self.ranges == "none" and self.weights.is_float and self.weights.dtype == self.activations.dtype

    @property
    def is_weight_only(self) -> bool:
        """Whether it is of stored weights alone: activations, and what multiplies two of them, stay float."""
        return self.ranges == "none" and not self.is_whole

    def counts_as(self, found: str) -> bool:
        """Whether what a layer was counted in is what this promises, or narrower.

        A precision of activations is not met by weights that are merely stored in it; a precision of weights is met by
        integer arithmetic too.

        Args:
            found: as a target counts it: `int8`, `int4-weights`, `6-bit palette`, `float16`.
        """
        if self.counted or self.weights.is_float:
            return found in (self.counted or {self.weights.dtype})
        match = _INTEGERS.fullmatch(found)
        if match is None:
            return False
        stored = bool(match["held"] or match["palette"])
        return int(match["bits"] or match["palette"]) <= self.weights.bits and (self.is_weight_only or not stored)


@dataclass(frozen=True)
class Dtype:
    """What layers are counted in, as far as their speed depends on it.

    Attributes:
        bytes: width of one activation in bytes.
        own: keys of `Device.peak_tops` that are its rate, best first.
        wider: the dtype whose rate is used where none is published; "" where there is none.
        held: width of one weight in bytes, where weights are narrower than activations; 0 where they are not.
    """

    bytes: float
    own: tuple[str, ...] = ()
    wider: str = ""
    held: float = 0.0

    @property
    def weight_bytes(self) -> float:
        """Width of one weight in bytes."""
        return self.held or self.bytes


DTYPES: Mapping[str, Dtype] = {
    "int8": Dtype(1.0, ("int8",), wider="float16"),
    "fp8": Dtype(1.0, ("fp8",), wider="float16"),
    "int16": Dtype(2.0, wider="float32"),
    "float16": Dtype(2.0, ("fp16",), wider="float32"),
    "bfloat16": Dtype(2.0, ("bf16",), wider="float16"),
    "float32": Dtype(4.0, ("tf32", "fp32")),
}
"""By name, as targets count layers."""


def dtype_of(found: str) -> Dtype:
    """The row of what a layer was counted in; that of float32 for a name that has none.

    Integers that are merely stored (`int4-weights`, `6-bit palette`) stand beside activations that are float16 at best.
    Those of fewer than 8 bits (`int4`) have no published rate: that of int8 is taken.
    """
    match = _INTEGERS.fullmatch(found)
    if match and (match["held"] or match["palette"]):
        return replace(DTYPES["float16"], held=int(match["bits"] or match["palette"]) / 8)
    if match and int(match["bits"]) < 8:
        return Dtype(int(match["bits"]) / 8, wider="int8")
    return DTYPES.get(found, DTYPES["float32"])


def rates_of(found: str) -> tuple[str, ...]:
    """Keys of `Device.peak_tops` for a layer, best first: without a published rate the next wider one is used."""
    dtype = dtype_of(found)
    return dtype.own + (rates_of(dtype.wider) if dtype.wider else ())


def rate_bytes(rate: str) -> float | None:
    """Bytes of an element that a rate of a device table is for; None of one that no dtype has."""
    return next((dtype.bytes for dtype in DTYPES.values() if rate in dtype.own), None)
