"""bfloat16: its bits against PyTorch's, and kernels of every instruction set against sums in float64."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import torch

from deploykit.contract.host import this_host
from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16, from_bits, narrowed, to_bits, widened
from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import ConvShape, pack_conv, pack_conv_constants, plan_conv
from deploykit_targets.tvm.kernels.depthwise import depthwise, pack_depthwise
from deploykit_targets.tvm.kernels.isa import Isa, isa
from deploykit_targets.tvm.kernels.isa_bfloat16 import DOTS
from deploykit_targets.tvm.kernels.mapped import Access, mapped
from deploykit_targets.tvm.kernels.matmul import pack_operand, plan_matmul
from deploykit_targets.tvm.kernels.pool import PoolShape, average_pool, max_pool
from deploykit_targets.tvm.kernels.residual import Residual
from deploykit_targets.tvm.processor import X86_BFLOAT16, tiles_granted

sys.path.insert(0, str(Path(__file__).parent))
import test_aarch64
from test_conv import reference
from test_matmul import product, run

SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38, -1e-40, 65504.0, 1 / 3], np.float32
)
"""Ties to even in both directions, what rounds to infinity, and what has no number."""
ARM = {"neon_bf16": "max", "neon": "cortex-a72"}
HALF_UNIT = 2.0**-8 + 1e-5
"""Of the last bit of a bfloat16 below the largest result."""
CONVOLUTIONS = {
    "lines that tiles do not divide": ConvShape(1, 6, 7, 16, 20, (3, 3)),
    "an odd stretch, and columns that no vector fills": ConvShape(2, 5, 5, 3, 5, (3, 3), (2, 2)),
    "one row": ConvShape(1, 1, 1, 40, 24),
    "stretches that matrices fill": ConvShape(1, 5, 6, 33, 40, (3, 3), dilation=(2, 2)),
    "groups": ConvShape(1, 4, 5, 12, 48, (1, 3), groups=2),
}


def numbers(*shape: int, seed: int = 3) -> np.ndarray:
    """float32 numbers that are bfloat16's."""
    return from_bits(to_bits(np.random.default_rng(seed).normal(size=shape).astype(np.float32)))


def test_bits_are_pytorchs() -> None:
    values = np.concatenate([SPECIAL, np.random.default_rng(0).normal(0, 100, 5000).astype(np.float32)])
    wanted = torch.from_numpy(values).to(torch.bfloat16)
    number = ~np.isnan(values)  # of NaNs there are many
    assert np.array_equal(to_bits(values)[number], wanted.view(torch.int16).numpy().view(np.uint16)[number])
    assert np.array_equal(from_bits(to_bits(values)), wanted.float().numpy(), equal_nan=True)


@pytest.fixture(params=["amx_bf16", "avx512_bf16", "avx2"])
def host_isa(request: pytest.FixtureRequest) -> Isa:
    """In silicon, and widened to float32; tiles of AMX are emulated where the CPU has what runs beside them."""
    beside = "avx512_bf16" if request.param == "amx_bf16" else request.param
    missing = [feature for feature in dict(X86_BFLOAT16)[beside] if not this_host().has(feature)]
    native = this_host().has("amx_bf16") and tiles_granted()
    if request.param == "amx_bf16" and not missing and not native:
        request.getfixturevalue("tiles")
    if missing:
        pytest.skip(f"this machine has no {', '.join(missing)}")
    return isa(request.param)


def test_kernels_round_as_numpy(host_isa: Isa, execute: Any) -> None:
    values = np.concatenate([SPECIAL, numbers(51) * 1.003])  # three vectors, and one that overlaps
    flat = Access("float32", (1,)), Access(BFLOAT16, (1,))
    found = execute(
        mapped((values.size,), flat[:1], flat[1], lambda v, n: narrowed(v[0], n)), host_isa, values,
        elements=values.size, dtype=BFLOAT16,
    )  # fmt: skip
    assert np.array_equal(found, to_bits(values))
    back = execute(
        mapped((values.size,), flat[1:], flat[0], lambda v, n: widened(v[0], n)), host_isa, found,
        elements=values.size, dtype="float32",
    )  # fmt: skip
    assert np.array_equal(back, from_bits(found), equal_nan=True)


def near(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    """Relative to the largest result: products are exact in float32, and sums are float32's in another order."""
    np.testing.assert_allclose(found, wanted.ravel(), rtol=0, atol=tolerance * np.abs(wanted).max())


def convolution(shape: ConvShape, dot: Any) -> tuple[Any, list[np.ndarray], np.ndarray]:
    """Plan, kernel arguments, and what it should give in float64."""
    plan = plan_conv(shape, dot)
    size = (shape.columns, shape.channels // shape.groups, *shape.kernel)
    x, weight, bias = numbers(plan.input_elements), numbers(*size, seed=4), numbers(shape.columns, seed=5)
    whole = shape.batch * shape.height * shape.width * shape.channels
    wanted = reference(shape, x[:whole], weight) + bias
    return plan, [to_bits(x), pack_conv(plan, to_bits(weight)), pack_conv_constants(plan, bias)], wanted


@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
def test_convolution(shape: ConvShape, host_isa: Isa, execute: Any) -> None:
    plan, inputs, wanted = convolution(shape, host_isa.bfloat16)
    elements = plan.output_elements
    found = execute(conv(plan, output="float32"), host_isa, *inputs, elements=elements, dtype="float32")
    near(found, wanted)


def test_convolution_that_adds_and_rounds(host_isa: Isa, execute: Any) -> None:
    shape = CONVOLUTIONS["an odd stretch, and columns that no vector fills"]
    plan, inputs, wanted = convolution(shape, host_isa.bfloat16)
    elements = plan.output_elements
    other = numbers(elements, seed=6)
    limited = conv(plan, limits=(0.0, 3e38), residual=Residual(dtype="float32"))
    rounded = execute(limited, host_isa, *inputs, other, elements=elements, dtype=BFLOAT16)
    near(from_bits(rounded), np.maximum(wanted + other.reshape(wanted.shape), 0), HALF_UNIT)


@pytest.mark.parametrize(("sizes", "transposed"), [((2, 9, 16, 20), True), ((2, 5, 7, 33), False)], ids=str)
def test_product_of_activations(sizes: tuple[int, ...], transposed: bool, host_isa: Isa) -> None:
    heads, rows, inputs, columns = sizes
    plan = plan_matmul(1, rows, inputs, columns, host_isa.bfloat16, heads=heads)
    a, b = numbers(plan.input_elements), numbers(heads * inputs * columns, seed=4)
    found = run(plan, pack_operand(plan, transposed=transposed), host_isa, to_bits(a), to_bits(b))
    near(from_bits(found), product(plan, a[: rows * heads * inputs], b, transposed), HALF_UNIT)


def test_depthwise(host_isa: Isa, execute: Any) -> None:
    shape = ConvShape(1, 7, 9, 24, 24, (3, 3), groups=24)
    x, weight, bias = numbers(7 * 9 * 24), numbers(24, 1, 3, 3, seed=4), numbers(24, seed=5)
    wanted = reference(shape, x, weight) + bias
    arguments = to_bits(x), pack_depthwise(to_bits(weight), host_isa.bfloat16), bias
    kernel = depthwise(shape, host_isa.bfloat16, output="float32")
    near(execute(kernel, host_isa, *arguments, elements=wanted.size, dtype="float32"), wanted)
    rounded = execute(depthwise(shape, host_isa.bfloat16), host_isa, *arguments, elements=wanted.size, dtype=BFLOAT16)
    near(from_bits(rounded), wanted, HALF_UNIT)


def test_pools(host_isa: Isa, execute: Any) -> None:
    """Negative numbers have larger bits: a maximum of bits would be wrong."""
    shape = PoolShape(1, 6, 6, 20, (3, 3), (2, 2), (1, 1, 1, 1))
    x = numbers(6 * 6 * 20) - 2
    image = torch.from_numpy(from_bits(to_bits(x)).reshape(1, 6, 6, 20)).permute(0, 3, 1, 2)
    found = execute(max_pool(shape, BFLOAT16), host_isa, to_bits(x), elements=3 * 3 * 20, dtype=BFLOAT16)
    wanted = torch.nn.functional.max_pool2d(image, 3, 2, 1).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(from_bits(found), wanted.ravel())
    mean = average_pool(shape, BFLOAT16, output="float32")
    found = execute(mean, host_isa, to_bits(x), elements=3 * 3 * 20, dtype="float32")
    near(found, torch.nn.functional.avg_pool2d(image, 3, 2, 1).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("shape", list(CONVOLUTIONS.values())[1:], ids=list(CONVOLUTIONS)[1:])
@pytest.mark.parametrize("name", list(ARM))
def test_arm_under_emulation(name: str, shape: ConvShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not all(map(shutil.which, ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"))):
        pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static")
    plan, inputs, wanted = convolution(shape, isa(name).bfloat16)
    output = np.zeros(plan.output_elements, np.float32)
    monkeypatch.setitem(test_aarch64.CPUS, name, ARM[name])
    near(test_aarch64.emulate(conv(plan, output="float32"), name, tmp_path, *inputs, output), wanted)


@pytest.mark.parametrize(
    ("name", "columns", "rows", "instruction"),
    [("neon_bf16", 24, 4, "bfmmla"), ("neon_bf16", 24, 1, "bfdot"), ("neon", 24, 4, "fmla")],
)
def test_arm_instructions(name: str, columns: int, rows: int, instruction: str) -> None:
    plan = plan_conv(ConvShape(1, 1, rows, 64, columns), isa(name).bfloat16)
    assembly = test_aarch64.build(conv(plan), name).inspect_source("asm")
    assert len(re.findall(rf"^\s+{instruction}\s", assembly, re.MULTILINE)) >= 4
    assert instruction == "fmla" or not re.search(r"^\s+fmla\s", assembly, re.MULTILINE)


def test_x86_instruction_of_one_operation() -> None:
    """Inputs are repeated by the load of the instruction itself, weights are loaded once for all rows of a tile."""
    plan = plan_conv(ConvShape(1, 6, 7, 16, 48, (3, 3)), isa("avx512_bf16").bfloat16)
    assembly = test_aarch64.build(conv(plan), "avx512_bf16").inspect_source("asm")
    steps = re.findall(r"^\s+vdpbf16ps\s.*", assembly, re.MULTILINE)
    assert len(steps) >= plan.rows * plan.tile
    assert not re.search(r"^\s+(vfmadd\w+|call.*deploykit_)", assembly, re.MULTILINE)


@pytest.mark.parametrize(
    "names", [("amx_bf16", "avx512_bf16", "avx512_vnni", "avx2"), ("neon_bf16", "neon")], ids=["x86", "arm"]
)
def test_instruction_sets_share_packed_weights(names: tuple[str, ...]) -> None:
    shape = ConvShape(1, 8, 8, 40, 64, (3, 3))
    weight = to_bits(numbers(64, 40, 3, 3))
    first, *others = (pack_conv(plan_conv(shape, DOTS[name]), weight).tobytes() for name in names)
    assert all(other == first for other in others)
    assert len(first) < 1.2 * weight.nbytes
