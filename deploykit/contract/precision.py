"""The vocabulary of precisions and evidence levels. Data only; what a target supports is said by the target."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """What a user asks for. Orthogonal to the target; the artifact reports what was achieved beside it."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"  # static: int8 weights and activations, needs calibration
    INT8_DYNAMIC = "int8-dynamic"  # int8 weights, activation ranges found at run time
    INT8_WEIGHT_ONLY = "int8-weight-only"
    INT4_WEIGHT_ONLY = "int4-weight-only"
    INT16X8 = "int16x8"  # int16 activations, int8 weights, static
    FP8 = "fp8"
    INT4_PALETTE = "int4-palette"
    INT6_PALETTE = "int6-palette"
    MIXED = "mixed"

    @property
    def is_static(self) -> bool:
        """Whether activation ranges are fixed at export, so that calibration data is required."""
        return self in (Precision.INT8, Precision.INT16X8, Precision.FP8, Precision.MIXED)

    @property
    def is_weight_only(self) -> bool:
        """Whether it is of stored weights alone: activations, and what multiplies two of them, stay float."""
        return self in (Precision.INT8_WEIGHT_ONLY, Precision.INT4_WEIGHT_ONLY, *_PALETTES)


_PALETTES = (Precision.INT4_PALETTE, Precision.INT6_PALETTE)


class Evidence(StrEnum):
    """How a figure was obtained, best first. Figures of different evidence are never mixed.

    Parity and profiles are never `compiled`, for a compiler computes no outputs and measures no time.
    """

    DEVICE = "device"  # the artifact's own runtime on the real hardware
    EMULATOR = "emulator"  # the real binary under emulation: correctness only, never latency
    COMPILED = "compiled"  # the vendor's own compiler read the file and said what it computes in; nothing was run
    REFERENCE = "reference"  # the same graph in another runtime
    ESTIMATE = "estimate"  # computed from the device table
