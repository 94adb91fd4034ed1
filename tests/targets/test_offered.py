"""`targets()` offers what an export can be on this machine."""

from __future__ import annotations

import pytest

from deploykit.contract.optional import SystemTool
from deploykit.contract.precision import Precision
from deploykit.plugin.registry import targets, toolchains


def test_fp16_is_not_offered_where_the_runtime_computes_it_in_float32() -> None:
    offered = {info.name: info.precisions for info in targets() if info.toolchain == "onnxruntime"}
    assert set(offered) == {"x86-cpu", "x86-cpu-avx2"}
    assert all(Precision.FP16 not in precisions and Precision.INT8 in precisions for precisions in offered.values())
    plugin = toolchains()["onnxruntime"]
    assert Precision.FP16 in plugin.capabilities().precisions, "it can be asked for, for its size"


@pytest.mark.parametrize("there", [True, False])
def test_tvm_is_offered_where_a_compiler_for_the_device_is(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemTool, "installed", there)
    plugin = toolchains()["tvm"]
    for device in plugin.capabilities().devices.values():
        missing = plugin.unavailable_here(device)
        assert not missing if there else missing.startswith("sudo apt-get install gcc")
    if not there:
        assert not any(info.can_export for info in targets() if info.toolchain == "tvm")
