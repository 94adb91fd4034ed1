"""What XNNPACK takes of a file, the gate on it, and the profile at several thread counts."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import deploykit
from deploykit.contract.host import this_host
from deploykit.judge.profiling import Effort
from deploykit.plugin.registry import toolchain
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_targets.litert.delegation import taken_by_delegates

needs_converter = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")


def op(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}


def test_a_piece_is_what_lies_between_its_ends() -> None:
    """Tensors 0 -> 1 -> 2 -> 3 -> 4, with a constant 9 and a branch 1 -> 5: the piece begins behind 1."""
    details = [
        op(0, "CONV_2D", [0, 9], [1]),
        op(1, "ADD", [1, 9], [2]),
        op(2, "MUL", [2, 2], [3]),
        op(3, "GELU", [3], [4]),
        op(4, "SOFTMAX", [1], [5]),
        op(5, "DELEGATE", [1, 9], [3]),
        op(6, "DELEGATE", [1], [5]),
    ]
    assert taken_by_delegates(details) == {1, 2, 4}


def export(output: Path, model: str, precision: str, **changes: Any) -> deploykit.Artifact:
    module, example_inputs = models.ZOO[model]()
    return deploykit.export(
        module,
        "litert",
        precision,
        example_inputs=example_inputs,
        calibration=batches(example_inputs) if precision in ("int8", "int16x8") else None,
        output=output,
        profile=False,
        progress=False,
        **changes,
    )


@needs_converter
def test_int8_convolutions_are_taken_and_int8_hardswish_is_not(tmp_path: Path) -> None:
    found = export(tmp_path / "a", "squeeze_excite_cnn", "int8", min_placement=0.95).achieved.delegation
    assert found is not None and found.macs_fraction == 1.0
    assert found.left == {"HARD_SWISH": 4}
    assert found.delegated == found.operators - 4 and found.partitions > 1
    assert "not 4 HARD_SWISH" in str(found)


@needs_converter
def test_missed_placement_names_the_operators_that_are_left(tmp_path: Path) -> None:
    """XNNPACK has no kernel for 16-bit activations."""
    with pytest.raises(deploykit.PlacementError, match=r"XNNPACK takes 0\.0% .* CONV_2D") as caught:
        export(tmp_path / "a", "mobilenet_like", "int16x8", min_placement=0.5)
    assert caught.value.candidate is not None


@needs_converter
def test_other_kernels_have_no_delegate(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", "mlp", "int8", options={"kernels": "builtin"}, min_placement=1.0)
    assert artifact.achieved.delegation is None


@needs_converter
def test_profile_has_latency_by_threads_and_the_operators(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", "mlp", "fp32")
    found = toolchain("litert").profile(artifact, effort=Effort(seconds=0.01))
    assert list(found.latency_by_threads_ms) == ["1", "2"][: this_host().cores]
    assert all(0.0 < latency.p50 <= latency.p99 for latency in found.latency_by_threads_ms.values())
    assert found.operators["FULLY_CONNECTED"] == 3
    artifact.save_profile(found)
    assert deploykit.load(artifact.path).profile == found
