"""What the converter refuses, in terms of the user's model."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import deploykit
from deploykit.capture.origins import Origin
from deploykit_targets.litert.failures import crashed, translated

needs_converter = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")
ORIGIN = Origin("head", "aten.linalg_thing.default", "model.py:7 in forward: return thing(x)")


def test_missing_lowering_names_op_module_and_line() -> None:
    error = translated("Lowering not found: aten.linalg_thing.default\n\nWhile executing ...", "", {"thing": ORIGIN})
    assert isinstance(error, deploykit.ConversionError)
    assert "LiteRT has no form of aten.linalg_thing.default" in str(error)
    assert "head" in str(error) and "model.py:7" in str(error)


def test_missing_lowering_of_another_overload_is_still_found() -> None:
    assert "model.py:7" in str(translated("Lowering not found: aten.linalg_thing.out", "", {"thing": ORIGIN}))


def test_refusal_of_the_native_converter_carries_its_reason_and_the_log() -> None:
    log = "line one\nmodel.py:9:0: error: 'tfl.padv2' op operand #0 must be tensor\n"
    error = translated("Failed to run converter passes", log, {})
    assert "'tfl.padv2' op operand #0 must be tensor" in str(error)


def test_a_line_of_several_operators_is_named_where_one_is_no_operator_of_pytorch() -> None:
    picked = replace(ORIGIN, op="getitem")
    log = 'x/model.py:7:0: error: failed to legalize operation "tfl.pad"'
    error = translated("Failed to run converter passes", log, {"thing": ORIGIN, "getitem": picked})
    assert "model.py:7" in str(error)


def test_crash_says_by_which_signal() -> None:
    assert "SIGSEGV" in str(crashed(-11, "")) and "status 3" in str(crashed(3, "last words"))


@needs_converter
def test_unsupported_op_of_a_real_model(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Decomposing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x)

    with pytest.raises(deploykit.ConversionError, match=r"svd.*test_failures\.py"):
        deploykit.export(
            nn.Sequential(Decomposing()),
            "android",
            "fp32",
            example_inputs=(torch.randn(4, 4),),
            output=tmp_path / "never",
            profile=False,
            progress=False,
        )
    assert not any(tmp_path.iterdir())


@needs_converter
def test_dynamic_shapes_and_int8_ends_of_float_models_are_refused_before_converting(tmp_path: Path) -> None:
    import torch
    from torch import nn

    arguments: Any = {"example_inputs": (torch.randn(2, 4),), "output": tmp_path / "never", "progress": False}
    with pytest.raises(deploykit.UsageError, match="fixed shapes"):
        deploykit.export(nn.Linear(4, 2), "android", "fp32", dynamic_batch=True, **arguments)
    with pytest.raises(deploykit.UsageError, match=r"has no effect in .*: it is an option of int8"):
        deploykit.export(nn.Linear(4, 2), "android", "fp16", options={"io": "int8"}, **arguments)
