"""The vocabulary of precisions and evidence levels. Data only; what a target supports is said by the target."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from deploykit.contract.entry_points import UPDATE, entry_points, loaded, named
from deploykit.contract.errors import DeploykitError
from deploykit.contract.formats import (
    BFLOAT16,
    FLOAT8,
    FLOAT8_CHANNELS,
    FLOAT16,
    FLOAT32,
    INT4_CHANNELS,
    INT8_AFFINE,
    INT8_CHANNELS,
    INT16_SYMMETRIC,
    PALETTE4,
    PALETTE6,
    Format,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "deploykit.precisions"
"""Entry points of other distributions: the name of a precision, and where its `Format` is."""
_KIND = "precision"


class Precision(StrEnum):
    """What a user asks for. Orthogonal to the target; the artifact reports what was achieved beside it.

    `Precision(name)` also finds the precisions that other distributions register: such a member is made once, so that
    `is` compares it like the others. Iterating gives the members below alone; `registered()` has the others.

    Attributes:
        row: what is known of it.
    """

    _value_: str
    row: Format

    # Gates: random and trained models at hand reach 25-60 dB in static int8 (CNNs and transformers), 19-29 dB with int4
    # weights, 70 dB in fp16 and 45 dB in bf16; a broken conversion is below 10 dB. The gates sit between.
    FP32 = (
        "fp32",
        Format(
            summary="float32 throughout; the matrix units of a GPU may round to TF32",
            weights=FLOAT32,
            activations=FLOAT32,
            counted=frozenset({"float32", "float64", "tf32"}),
            gentler=(),
            min_sqnr_db=80.0,
            min_cosine=0.99999,
            min_equal=0.999,
        ),
    )
    FP16 = (
        "fp16",
        Format(
            summary="float16 throughout",
            weights=FLOAT16,
            activations=FLOAT16,
            rest="float16",
            # where the file fixes storage alone and whoever runs it the arithmetic, it is named `float16-weights`
            counted=frozenset({"float16", "float16-weights"}),
            further=("bf16", "fp32"),
            gentler=("bf16", "fp32"),
            min_sqnr_db=40.0,
            min_cosine=0.9995,
            min_equal=0.99,
        ),
    )
    BF16 = (
        "bf16",
        Format(
            summary="bfloat16 throughout",
            weights=BFLOAT16,
            activations=BFLOAT16,
            rest="bfloat16",
            further=("fp32",),
            gentler=("fp32",),
            min_sqnr_db=25.0,
            min_cosine=0.995,
            min_equal=0.95,
        ),
    )
    INT8 = (
        "int8",
        Format(
            summary="int8 weights and activations; ranges fixed at export, from calibration data",
            weights=INT8_CHANNELS,
            activations=INT8_AFFINE,
            ranges="static",
            # recurrent layers have dynamic kernels and no static ones, convolutions the other way round
            further=("int8-dynamic", "int8-weight-only", "fp16", "bf16"),
            min_sqnr_db=18.0,
            min_cosine=0.99,
            min_equal=0.9,
        ),
    )
    INT8_DYNAMIC = (
        "int8-dynamic",
        Format(
            summary="int8 weights and activations; ranges of activations found at run time",
            weights=INT8_CHANNELS,
            activations=INT8_AFFINE,
            ranges="dynamic",
            further=("int8", "int8-weight-only"),
            gentler=("int8-weight-only", "fp16", "bf16", "fp32"),
            min_sqnr_db=18.0,
            min_cosine=0.99,
            min_equal=0.9,
        ),
    )
    INT8_WEIGHT_ONLY = (
        "int8-weight-only",
        Format(
            summary="int8 weights; activations stay float",
            weights=INT8_CHANNELS,
            activations=FLOAT32,
            further=("int8", "fp16"),
            gentler=("fp16", "bf16", "fp32"),
            min_sqnr_db=25.0,
            min_cosine=0.995,
            min_equal=0.95,
        ),
    )
    INT4_WEIGHT_ONLY = (
        "int4-weight-only",
        Format(
            summary="int4 weights; activations stay float",
            weights=INT4_CHANNELS,
            activations=FLOAT32,
            further=("int8-weight-only", "int8"),
            min_sqnr_db=12.0,
            min_cosine=0.96,
            min_equal=0.9,
        ),
    )
    INT16X8 = (
        "int16x8",
        Format(
            summary="int16 activations and int8 weights; ranges fixed at export, from calibration data",
            weights=INT8_CHANNELS,
            activations=INT16_SYMMETRIC,
            ranges="static",
            counted=frozenset({"int16x8", "int16", "int8"}),
            further=("int8",),
            min_sqnr_db=25.0,
            min_cosine=0.995,
            min_equal=0.95,
        ),
    )
    FP8 = (
        "fp8",
        Format(
            summary="float8_e4m3fn weights and activations; scales fixed at export, from calibration data",
            weights=FLOAT8_CHANNELS,
            activations=FLOAT8,
            ranges="static",
            counted=frozenset({"fp8"}),
            further=("int8", "fp16"),
            min_sqnr_db=15.0,
            min_cosine=0.98,
            min_equal=0.9,
        ),
    )
    INT4_PALETTE = (
        "int4-palette",
        Format(
            summary="weights are indices into a table of 16 values; activations stay float",
            weights=PALETTE4,
            activations=FLOAT32,
            further=("int6-palette", "int8-weight-only"),
            min_sqnr_db=12.0,
            min_cosine=0.96,
            min_equal=0.9,
        ),
    )
    INT6_PALETTE = (
        "int6-palette",
        Format(
            summary="weights are indices into a table of 64 values; activations stay float",
            weights=PALETTE6,
            activations=FLOAT32,
            further=("int8-weight-only", "fp16"),
            min_sqnr_db=18.0,
            min_cosine=0.99,
            min_equal=0.9,
        ),
    )
    MIXED = (
        "mixed",
        Format(
            summary="int8 where it is placed, float16 for the rest",
            weights=INT8_CHANNELS,
            activations=INT8_AFFINE,
            ranges="static",
            rest="float16",
            further=("fp16",),
            min_sqnr_db=18.0,
            min_cosine=0.99,
            min_equal=0.9,
        ),
    )

    def __new__(cls, value: str, row: Format | None = None) -> Precision:
        """Make a member whose value is the plain name; `Precision(name)`, which has no row, looks one up instead."""
        assert row is not None
        made = str.__new__(cls, value)
        made._value_, made.row = value, row
        return made

    def __reduce_ex__(self, protocol: object) -> tuple[type[Precision], tuple[str]]:
        """Reduce to the value: Python 3.11.2 asks for the name, which a registered precision has not."""
        del protocol
        return Precision, (self.value,)

    @property
    def is_static(self) -> bool:
        """Whether activation ranges are fixed at export, so that calibration data is required."""
        return self.row.is_static

    @property
    def is_weight_only(self) -> bool:
        """Whether it is of stored weights alone: activations, and what multiplies two of them, stay float."""
        return self.row.is_weight_only

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        """The precision that a distribution registers under this name; None where none does.

        Raises:
            DeploykitError: it is registered twice, cannot be loaded, or is no `Format`.
        """
        entry = _entries().get(value) if isinstance(value, str) else None
        if entry is None:
            return None
        made = str.__new__(cls, entry.name)
        made._value_, made._name_, made.row = entry.name, entry.name.upper().replace("-", "_"), _row(entry)
        # a second thread may have made one meanwhile: the first one stays, and `is` holds
        found = cls._value2member_map_.setdefault(entry.name, made)
        assert isinstance(found, cls)
        return found


def registered() -> tuple[str, ...]:
    """Names of the precisions that other distributions bring, sorted.

    Raises:
        DeploykitError: two of them bring the same name.
    """
    return tuple(sorted(_entries()))


def known(name: str) -> Precision | None:
    """The precision of this name; None where there is none."""
    try:
        return Precision(name)
    except ValueError:
        return None


def _entries() -> dict[str, EntryPoint]:
    """Entry points by name. A name of `Precision` itself cannot be taken, and is left out."""
    return {name: entry for name, entry in entry_points(GROUP, _KIND).items() if name not in set(Precision)}


def _row(entry: EntryPoint) -> Format:
    made = loaded(entry, _KIND)
    if not isinstance(made, Format):
        raise DeploykitError(f"{named(entry, _KIND)} is not a deploykit Format", hint=UPDATE)
    return made


class Evidence(StrEnum):
    """How a figure was obtained, best first. Figures of different evidence are never mixed.

    Parity and profiles are never `compiled`, for a compiler computes no outputs and measures no time.
    """

    DEVICE = "device"  # the artifact's own runtime on the real hardware
    EMULATOR = "emulator"  # the real binary under emulation: correctness only, never latency
    COMPILED = "compiled"  # the vendor's own compiler read the file and said what it computes in; nothing was run
    REFERENCE = "reference"  # the same graph in another runtime
    ESTIMATE = "estimate"  # computed from the device table
