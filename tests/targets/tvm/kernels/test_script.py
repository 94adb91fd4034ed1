"""Kernels are parsed without the source of every frame, and TVM's own rules for classes hold beside that."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import tvm
from tvm.script import ir as I
from tvm.script.parser.core import parser
from tvm.tirx.script.parser import entry

from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import ConvShape, plan_conv
from deploykit_targets.tvm.kernels.isa import ISAS
from deploykit_targets.tvm.kernels.script import T


def kernel() -> Any:
    """One that is put together from several parts."""
    return conv(plan_conv(ConvShape(1, 9, 9, 24, 40, (3, 3)), ISAS["avx2"].int8))


def test_a_kernel_is_the_one_that_tvm_parses_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    made = kernel()
    for module in (parser, entry):
        assert module.inspect is not inspect
        monkeypatch.setattr(module, "inspect", inspect)
    tvm.ir.assert_structural_equal(made, kernel())


def test_no_frame_is_read_with_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(inspect, "getframeinfo", lambda frame, context=1: asked.append(frame))
    kernel()
    assert not asked


def test_a_function_of_a_class_is_parsed_with_its_class() -> None:
    @I.ir_module
    class Doubles:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):  # type: ignore[no-untyped-def]  # noqa: N805
            for i in range(4):
                y[i] = x[i] * 2.0

    assert isinstance(Doubles, tvm.IRModule)
    assert [each.name_hint for each in Doubles.get_global_vars()] == ["main"]
