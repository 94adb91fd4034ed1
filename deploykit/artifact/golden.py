"""Golden data: inputs, and the outputs that an artifact gave when it was made, for devices to test themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploykit.artifact import manifest as layout
from deploykit.contract.decibels import SQNR_CAP_DB
from deploykit.contract.errors import ArtifactError
from deploykit.contract.precision import Precision
from deploykit.contract.reading import read_tensors
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.parity import Tolerance, tolerance_of

Specs = Sequence[TensorSpec]


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that the artifact gave for them when it was made; one dict per sample."""

    inputs: tuple[dict[str, np.ndarray], ...]
    outputs: tuple[dict[str, np.ndarray], ...]


def golden_tolerance(precision: Precision, min_sqnr_db: float | None = None) -> Tolerance:
    """How close a re-run of golden data must be: kernels may differ by rounding, not by more.

    Integer kernels of two instruction sets agree up to one LSB, which a network spreads to some 35 dB; where the gate
    of the precision is higher, that gate holds.

    Args:
        min_sqnr_db: a gate in dB that stands among the manifest's facts; it takes the place of the precision's gate.
    """
    gate = precision.row.min_sqnr_db if min_sqnr_db is None else min_sqnr_db
    whole = replace(tolerance_of(precision), min_sqnr_db=max(gate, 30.0), min_cosine=None)
    return replace(whole, min_part_sqnr_db=-SQNR_CAP_DB)  # an LSB weighs more in a part


def golden_bytes(golden: Golden) -> bytes:
    """Serialise golden data as safetensors: `input.<sample>.<name>` and `output.<sample>.<name>`."""
    from safetensors.numpy import save

    tensors = {
        f"{kind}.{index}.{name}": np.asarray(array, order="C")
        for kind, samples in (("input", golden.inputs), ("output", golden.outputs))
        for index, sample in enumerate(samples)
        for name, array in sample.items()
    }
    return save(tensors)


def read_golden(path: Path, input_specs: Specs, output_specs: Specs) -> Golden:
    """Read golden data.

    Raises:
        ArtifactError: the file is not valid safetensors, or lacks a tensor of the specs.
    """
    tensors = read_tensors(path)
    count = len({name.split(".", 2)[1] for name in tensors if name.count(".") >= 2})
    if not count:  # comparing nothing would pass
        raise ArtifactError(f"{layout.GOLDEN_NAME} holds no samples", hint="export the model again")
    try:
        inputs = tuple(_sample(tensors, "input", i, input_specs) for i in range(count))
        outputs = tuple(_sample(tensors, "output", i, output_specs) for i in range(count))
    except KeyError as error:
        raise ArtifactError(f"{layout.GOLDEN_NAME} lacks tensor {error}") from error
    return Golden(inputs, outputs)


def _sample(tensors: Mapping[str, np.ndarray], kind: str, index: int, specs: Specs) -> dict[str, np.ndarray]:
    sample = {spec.name: tensors[f"{kind}.{index}.{spec.name}"] for spec in specs}
    for spec in specs:
        shape = sample[spec.name].shape
        if not spec.accepts(shape):
            raise ArtifactError(f"{layout.GOLDEN_NAME}: {kind} {index} of shape {list(shape)} does not fit {spec}")
    return sample
