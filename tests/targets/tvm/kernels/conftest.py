"""Compile a kernel for an instruction set of this machine and run it on NumPy arrays."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.host import this_host
from deploykit_targets.tvm.processor import tiles_granted

sys.path.insert(0, str(Path(__file__).parent))
from registers import FEATURES, TILES, WIDTHS

os.environ.setdefault("TVM_NUM_THREADS", "2")  # tasks of a kernel must not depend on each other

TOLERANCE = 1e-5  # of float32, relative to the largest result: sums of a few hundred terms in another order

Execute = Callable[..., np.ndarray]


def compiled(kernel: Any, isa_name: str) -> Any:
    tvm = pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
    from deploykit_targets.tvm.kernels.isa import isa

    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target(dict(isa(isa_name).target)))


def here(name: str, request: pytest.FixtureRequest) -> Any:
    """An instruction set, where this machine has it; tiles of AMX are emulated where it has all but these."""
    pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
    from deploykit_targets.tvm.kernels.isa import isa

    missing = {feature for feature in FEATURES[name] if not this_host().has(feature)}
    if missing - TILES or (missing and name != "amx_int8"):
        pytest.skip(f"this machine has no {', '.join(sorted(missing))}")
    if name == "amx_int8" and (missing or not tiles_granted()):
        request.getfixturevalue("tiles")
    return isa(name)


@pytest.fixture(params=sorted(FEATURES))
def host_isa(request: pytest.FixtureRequest) -> Any:
    """Each instruction set that this machine has."""
    return here(request.param, request)


@pytest.fixture(params=WIDTHS)
def host_width(request: pytest.FixtureRequest) -> Any:
    """One instruction set of each width of registers: enough for kernels that multiply no bytes."""
    return here(request.param, request)


@pytest.fixture(
    params=[*((name, "int8") for name in sorted(FEATURES)), *((name, "float32") for name in WIDTHS)], ids="-".join
)
def host_dot(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(instruction set, step) of all that multiply bytes, and of one of each width that multiplies float32."""
    name, precision = request.param
    found = here(name, request)
    return found, getattr(found, precision)


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
