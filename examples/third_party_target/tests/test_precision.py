"""The precision that this distribution brings: deploykit knows it by its entry point alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import deploykit
from deploykit import Precision
from deploykit.testing import models
from deploykit_numpy.formats import INT12, pack, unpack

NAME = "int12-weight-only"


def exported(output: Path, precision: str) -> deploykit.Artifact:
    model, inputs = models.mlp()
    return deploykit.export(
        model, target="numpy-cpu", precision=precision, example_inputs=inputs, output=output, profile=False
    )


def sqnr_db(artifact: deploykit.Artifact) -> float:
    assert artifact.parity is not None
    assert artifact.parity.sqnr_db is not None
    return artifact.parity.sqnr_db


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    return exported(tmp_path_factory.mktemp("int12") / "artifact", NAME)


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "deploykit", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_values_lie_in_three_bytes() -> None:
    # -2048 is 0x000 and 2047 is 0xfff; 1 is 0x801 and 0 is 0x800
    assert pack(np.array([[-2048, 2047], [1, 0]])).tolist() == [[0x00, 0xF0, 0xFF], [0x01, 0x08, 0x80]]


@pytest.mark.parametrize("columns", [1, 2, 5, 64])
def test_unpack_is_the_inverse_of_pack(columns: int) -> None:
    values = np.random.default_rng(columns).integers(-2048, 2048, (7, columns)).astype(np.int16)
    packed = pack(values)
    assert packed.shape == (7, 3 * -(-columns // 2)) and packed.dtype == np.uint8
    found = unpack(packed, columns)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, values)


def test_every_layer_is_counted_in_it(artifact: deploykit.Artifact) -> None:
    assert artifact.precision == artifact.achieved.requested == NAME
    assert artifact.achieved.macs_fraction("int12-weights") == artifact.achieved.placed_fraction == 1.0


def test_the_gate_is_that_of_the_row_and_eight_bits_miss_it(artifact: deploykit.Artifact, tmp_path: Path) -> None:
    assert artifact.parity is not None
    assert artifact.parity.tolerance.min_sqnr_db == INT12.min_sqnr_db
    eight = exported(tmp_path / "eight", "int8-weight-only")
    assert sqnr_db(eight) < INT12.min_sqnr_db < sqnr_db(artifact)
    assert eight.size_bytes < artifact.size_bytes < exported(tmp_path / "whole", "fp32").size_bytes


@pytest.mark.parametrize("precision", [NAME, "int8-weight-only"])
def test_a_weight_of_two_layers_is_rounded_once(precision: str, tmp_path: Path) -> None:
    with models.seeded(0):
        layer, x = torch.nn.Linear(16, 16), torch.randn(4, 16)
    found = deploykit.export(
        torch.nn.Sequential(layer, torch.nn.Tanh(), layer).eval(),
        target="numpy-cpu",
        precision=precision,
        example_inputs=(x,),
        output=tmp_path / "artifact",
        profile=False,
    )
    assert sqnr_db(found) > Precision(precision).row.min_sqnr_db
    assert found.achieved.placed_fraction == 1.0


def test_an_artifact_that_is_loaded_again_has_the_same_precision(artifact: deploykit.Artifact) -> None:
    found = deploykit.load(artifact.path)
    assert found.manifest.precision is Precision(NAME)
    assert found.manifest.precision.row is INT12
    found.verify()


def test_commands_know_it(artifact: deploykit.Artifact) -> None:
    assert NAME in command("targets", "--json")
    assert NAME in command("inspect", str(artifact.path))
    assert "golden data" in command("verify", str(artifact.path))


def test_a_target_that_lacks_it_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(deploykit.UnsupportedPrecisionError, match=f"has no {NAME}; it has int8"):
        deploykit.export(
            torch.nn.Linear(4, 4),
            target="x86-cpu",
            precision=NAME,
            example_inputs=(torch.randn(1, 4),),
            output=tmp_path / "never",
        )


def test_a_misspelt_name_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError) as caught:
        exported(tmp_path / "never", "int12")
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(NAME)


def test_it_is_simulated_as_it_is_computed(artifact: deploykit.Artifact) -> None:
    assert artifact.parity is not None
    assert len(artifact.parity.chain) == 3 and artifact.parity.layers, "a simulation, with figures a layer"
    ends = [link.worst.sqnr_db for link in artifact.parity.chain if link.reference == "float PyTorch"]
    assert None not in ends and abs(ends[0] - ends[-1]) < 1.0  # type: ignore[operator]


def test_patterns_keep_a_layer_in_float(tmp_path: Path) -> None:
    model, inputs = models.mlp()
    kept = deploykit.export(
        model, "numpy-cpu", NAME, example_inputs=inputs, output=tmp_path / "a", profile=False, exclude=["4"]
    )
    floats = [layer for layer in kept.achieved.layers if layer.precision == "float32"]
    assert floats and all("excluded by pattern" in layer.reason for layer in floats)
