"""Compile a kernel for an instruction set of this machine and run it on NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit_targets.tvm.processor import tiles_granted

os.environ.setdefault("TVM_NUM_THREADS", "2")  # tasks of a kernel must not depend on each other

HOST_FLAGS = {
    "amx_int8": {"amx_int8", "amx_tile", "avx512_vnni", "avx512bw", "avx512vl"},
    "avx512_vnni": {"avx512_vnni", "avx512bw", "avx512vl"},
    "avx_vnni": {"avx_vnni", "avx2", "fma"},
    "avx2": {"avx2", "fma"},
    "avx2_7bit": {"avx2", "fma"},
}
TOLERANCE = 1e-5  # of float32, relative to the largest result: sums of a few hundred terms in another order

Execute = Callable[..., np.ndarray]


def _host_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    return set(info.read_text().split()) if info.exists() else set()


def compiled(kernel: Any, isa_name: str) -> Any:
    tvm = pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
    from deploykit_targets.tvm.kernels.isa import isa

    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target(dict(isa(isa_name).target)))


@pytest.fixture(params=sorted(HOST_FLAGS))
def host_isa(request: pytest.FixtureRequest) -> Any:
    """Each instruction set that this machine has; tiles of AMX are emulated where it has all but these."""
    pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
    from deploykit_targets.tvm.kernels.isa import isa

    missing = HOST_FLAGS[request.param] - _host_flags()
    if request.param == "amx_int8" and (missing or not tiles_granted()):
        request.getfixturevalue("tiles")
    elif missing:
        pytest.skip(f"this machine has no {', '.join(sorted(missing))}")
    return isa(request.param)


@pytest.fixture
def execute() -> Execute:
    """(kernel, instruction set, inputs..., elements and dtype of the output) -> output."""

    def run(kernel: Any, isa: Any, *inputs: np.ndarray, elements: int, dtype: str) -> np.ndarray:
        import tvm

        output = np.full(elements, 99, dtype=dtype)
        arguments = [tvm.runtime.tensor(np.ascontiguousarray(a).ravel()) for a in (*inputs, output)]
        compiled(kernel, isa.name)["main"](*arguments)
        return arguments[-1].numpy()

    return run


@pytest.fixture
def close() -> Callable[[np.ndarray, np.ndarray], None]:
    """float32 against a float64 reference."""

    def check(result: np.ndarray, reference: np.ndarray) -> None:
        np.testing.assert_allclose(result, reference.ravel(), rtol=0, atol=TOLERANCE * np.abs(reference).max())

    return check


@pytest.fixture
def within_one() -> Callable[[np.ndarray, np.ndarray], None]:
    """int8 against a float64 reference: one unit, where a product in float32 lies on the other side of a tie."""

    def check(result: np.ndarray, reference: np.ndarray) -> None:
        difference = np.abs(result.astype(np.int64) - reference.ravel().astype(np.int64))
        assert difference.max() <= 1
        assert np.mean(difference != 0) <= 0.02

    return check
