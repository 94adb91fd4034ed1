"""The compiler's own process: what TVM refuses and what ends LLVM are errors, not the end of the caller."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import tvm

from deploykit.contract.devices import load_devices
from deploykit.contract.errors import ConversionError
from deploykit_targets.tvm.compiling import Compiler, compile_kernels
from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import ConvShape, plan_conv
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.processor import Processor, processor_of

DEVICES = Path(__file__).parents[3] / "targets/deploykit_targets/tvm/devices.toml"


def _board(name: str) -> Processor:
    return processor_of(load_devices(DEVICES, toolchain="tvm")[name])


def _module() -> Any:
    kernel = conv(plan_conv(ConvShape(1, 4, 4, 16, 16), isa("sdot").int8))
    return tvm.IRModule({"layer": kernel.with_attr("global_symbol", "layer")})


def test_machine_code_and_its_text() -> None:
    compiled = compile_kernels(_module(), _board("raspberry-pi-5"))
    assert compiled.object_code.startswith(b"\x7fELF")
    assert "sdot" in compiled.assembly
    assert compiled == compile_kernels(_module(), _board("raspberry-pi-5")), "the same bytes every time"


def test_llvm_ending_its_process_is_an_error_here() -> None:
    with pytest.raises(ConversionError, match=r"cortex-a72 ended with signal 6.*Cannot select"):
        compile_kernels(_module(), _board("raspberry-pi-4"))


def test_what_tvm_refuses() -> None:
    with pytest.raises(ConversionError, match=r"TVM cannot compile the kernels for cortex-a76: "):
        compile_kernels(_module(), replace(_board("raspberry-pi-5"), triple="no-such-machine"))


def test_an_unused_process_goes_away() -> None:
    with Compiler() as compiler:
        process, folder = compiler._process, compiler._folder
    assert not process.alive and not folder.exists()


def test_a_compiler_that_is_killed_from_outside_is_no_defect_of_tvm() -> None:
    with Compiler() as compiler:
        os.kill(compiler._process.pid, signal.SIGKILL)
        with pytest.raises(ConversionError, match=r"killed from outside \(SIGKILL\)") as caught:
            compiler.compile(_module(), _board("raspberry-pi-5"))
    assert "defect" not in str(caught.value)
