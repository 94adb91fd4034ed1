"""Arm variants: compiled by TVM's own LLVM, their instructions counted, and run under emulation of the exact CPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import tvm

from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import (
    ConvShape,
    pack_bounded_constants,
    pack_conv,
    pack_conv_constants,
    plan_conv,
)
from deploykit_targets.tvm.kernels.depthwise import depthwise, pack_depthwise
from deploykit_targets.tvm.kernels.depthwise_dots import (
    depthwise_dots,
    fits,
    pack_depthwise_bounded,
    pack_depthwise_dots,
)
from deploykit_targets.tvm.kernels.elementwise import add_quantized
from deploykit_targets.tvm.kernels.expressions import Affine
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.kernels.packing import bounded_of, fold_bounded
from deploykit_targets.tvm.kernels.residual import Residual

SHAPE = ConvShape(1, 6, 7, 16, 20, (3, 3))
# Raspberry Pi 5, and 4, which has no dot products; QEMU has no Neoverse V1 before version 9, but all of its features.
CPUS = {"sdot": "cortex-a76", "neon": "cortex-a72", "i8mm": "max"}

BOUNDED = [name for name in CPUS if isa(name).int8.saturate is not None]


def build(kernel: Any, name: str) -> Any:
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target(dict(isa(name).target))).mod


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", list(CPUS))
def test_the_instruction_is_in_the_assembly(name: str, precision: str) -> None:
    dot = getattr(isa(name), precision)
    assembly = build(conv(plan_conv(SHAPE, dot)), name).inspect_source("asm")
    assert len(re.findall(rf"^\s+{dot.mnemonic}\s", assembly, re.MULTILINE)) >= 8


def test_sdot_reads_activations_by_lane() -> None:
    assembly = build(conv(plan_conv(SHAPE, isa("sdot").int8)), "sdot").inspect_source("asm")
    steps = re.findall(r"^\s+sdot\s.*", assembly, re.MULTILINE)
    assert all(re.search(r"\.4b\[[0-3]\]$", step.strip()) for step in steps)


def test_i8mm_takes_single_rows_by_dot_products() -> None:
    plan = plan_conv(ConvShape(1, 1, 1, 64, 40), isa("i8mm").int8)
    assembly = build(conv(plan), "i8mm").inspect_source("asm")
    assert re.search(r"^\s+sdot\s", assembly, re.MULTILINE)
    assert "smmla" not in assembly


def test_a_board_without_dot_products_gets_none() -> None:
    assert "sdot" not in build(conv(plan_conv(SHAPE, isa("neon").int8)), "neon").inspect_source("asm")


def emulate(kernel: Any, name: str, folder: Path, *arrays: np.ndarray) -> np.ndarray:
    """Run a kernel on the emulated CPU; the last array is its output."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static")
    build(kernel, name).write_to_file(str(folder / "kernel.o"), "o")
    sources = [str(Path(__file__).with_name("runner.c")), str(folder / "kernel.o")]
    subprocess.run([compiler, "-static", "-O1", "-o", str(folder / "run"), *sources, "-lm"], check=True)
    words: list[str] = []
    for index, array in enumerate(arrays):
        array.tofile(folder / f"{index}.bin")
        words += [str(array.size), str(array.dtype), str(folder / f"{index}.bin")]
    subprocess.run([emulator, "-cpu", CPUS[name], str(folder / "run"), *words], check=True)
    return np.fromfile(folder / f"{len(arrays) - 1}.bin", dtype=arrays[-1].dtype)


def reference(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """float64 sums of a dense 3x3 convolution, stride 1, NHWC."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(1, 2))
    return np.einsum("nhwcyx,ocyx->nhwo", windows, weight.astype(np.float64))


@pytest.mark.parametrize("channels", [16, 5], ids=["by lane", "with a tail"])
@pytest.mark.parametrize("name", list(CPUS))
def test_int8_convolution(name: str, channels: int, tmp_path: Path, within_one: Any) -> None:
    dot, rng = isa(name).int8, np.random.default_rng(0)
    plan = plan_conv(ConvShape(1, 6, 7, channels, 22, (3, 3)), dot)
    x = rng.integers(-128, 128, plan.input_elements).astype(np.int8)
    weight = rng.integers(-127, 128, (22, channels, 3, 3)).astype(np.int8)
    bias, scale = rng.normal(size=22).astype("f4"), np.full(22, 1 / 2000, "f4")
    packed = pack_conv(plan, weight), pack_conv_constants(plan, bias, scale)
    result = emulate(conv(plan), name, tmp_path, x, *packed, np.zeros(plan.output_elements, np.int8))
    sums = reference(x[: 42 * channels].reshape(1, 6, 7, channels), weight)
    within_one(result, np.clip(np.rint(sums * scale + bias), -128, 127))


def rounded_once(result: np.ndarray, real: np.ndarray, limits: tuple[int, int]) -> None:
    """What small sums become is rounded exactly, but for what a scale's last places move: 2**-12 of a unit."""
    low, high = (np.clip(np.rint(real + by), *limits).ravel() for by in (-(2.0**-12), 2.0**-12))
    assert ((low <= result) & (result <= high)).all()
    assert (low == high).mean() > 0.99


@pytest.mark.parametrize("limits", [None, (-20, 90)])
@pytest.mark.parametrize("channels", [8, 24, 128], ids=["a start for each row", "a tail", "one start"])
@pytest.mark.parametrize("name", BOUNDED)
def test_int8_convolution_with_small_sums(
    name: str, channels: int, limits: tuple[int, int] | None, tmp_path: Path
) -> None:
    dot, rng = isa(name).int8, np.random.default_rng(0)
    plan = plan_conv(ConvShape(1, 6, 7, channels, 22), dot, bounded=True)
    assert plan.bounded
    x = rng.integers(-128, 128, plan.input_elements).astype(np.int8)
    weight = rng.integers(-127, 128, (22, channels, 1, 1)).astype(np.int8)
    scales = rng.uniform(0.001, 0.002, 22)
    bias = rng.integers(-5000, 5000, 22) * 0.05 * scales
    given = {"input_scale": 0.05, "input_zero_point": 11, "output_scale": 0.03, "output_zero_point": -7}
    small = fold_bounded(weight, bias, weight_scale=scales, **given)  # type: ignore[arg-type]
    assert small is not None
    packed = pack_conv(plan, weight), pack_bounded_constants(plan, small)
    result = emulate(conv(plan, limits=limits), name, tmp_path, x, *packed, np.zeros(plan.output_elements, np.int8))
    sums = x[: 42 * channels].reshape(42, channels).astype(np.int64) @ weight[:, :, 0, 0].T.astype(np.int64)
    start = np.rint(bias / (0.05 * scales)) - 11 * weight.reshape(22, -1).sum(axis=1, dtype=np.int64)
    rounded_once(result, (sums + start) * (0.05 * scales / 0.03) - 7, limits or (-128, 127))


@pytest.mark.parametrize("name", BOUNDED)
def test_a_residual_joins_small_sums(name: str, tmp_path: Path, within_one: Any) -> None:
    dot, rng = isa(name).int8, np.random.default_rng(0)
    plan = plan_conv(ConvShape(1, 5, 6, 24, 20), dot, bounded=True)
    x = rng.integers(-128, 128, plan.input_elements).astype(np.int8)
    weight = rng.integers(-127, 128, (20, 24, 1, 1)).astype(np.int8)
    scale, start = rng.uniform(0.001, 0.002, 20).astype("f4"), rng.integers(-5000, 5000, 20)
    small = bounded_of(scale, start, 3, np.full(20, 1 << 20))
    assert plan.bounded
    assert small is not None
    other = rng.integers(-128, 128, plan.output_elements).astype(np.int8)
    added = Residual(Affine(0.02, 5), Affine(0.035, -7), Affine(0.03, 3), (-100, 127))
    arrays = x, pack_conv(plan, weight), pack_bounded_constants(plan, small), other, np.zeros_like(other)
    result = emulate(conv(plan, limits=(-110, 120), residual=added), name, tmp_path, *arrays)
    sums = x[: 30 * 24].reshape(30, 24).astype(np.int64) @ weight[:, :, 0, 0].T.astype(np.int64)
    own = np.clip(np.rint((sums + start) * scale.astype(np.float64) + 3), -100, 127).ravel()
    wanted = np.clip(np.rint((own - 3) * 0.03 / 0.035 + (other - 5.0) * 0.02 / 0.035 - 7), -110, 120)
    within_one(result, wanted)
    assert (result == wanted).mean() > 0.99  # the rest lies at a tie, of float32 or of the scale's last places


@pytest.mark.parametrize("name", list(CPUS))
def test_float32_convolution(name: str, tmp_path: Path, close: Any) -> None:
    dot, rng = isa(name).float32, np.random.default_rng(0)
    plan = plan_conv(SHAPE, dot)
    x, weight = rng.normal(size=(1, 6, 7, 16)).astype("f4"), rng.normal(size=(20, 16, 3, 3)).astype("f4")
    packed = pack_conv(plan, weight), pack_conv_constants(plan, np.ones(20, "f4"))
    result = emulate(conv(plan), name, tmp_path, x.ravel(), *packed, np.zeros(plan.output_elements, "f4"))
    close(result, reference(x, weight) + 1)


def test_int8_depthwise(tmp_path: Path, within_one: Any) -> None:
    dot, rng = isa("sdot").int8, np.random.default_rng(0)
    x = rng.integers(-128, 128, (1, 6, 7, 21)).astype(np.int8)
    weight = rng.integers(-128, 128, (21, 1, 3, 3)).astype(np.int8)
    constants = np.concatenate([np.full(21, 1 / 500, "f4"), np.ones(21, "f4")])
    kernel = depthwise(ConvShape(1, 6, 7, 21, 21, (3, 3), groups=21), dot)
    result = emulate(kernel, "sdot", tmp_path, x, pack_depthwise(weight, dot), constants, np.zeros(420, np.int8))
    diagonal = np.zeros((21, 21, 3, 3))
    diagonal[range(21), range(21)] = weight[:, 0]
    within_one(result, np.clip(np.rint(reference(x, diagonal) / 500 + 1), -128, 127))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size", "channels", "small"),
    [
        ((3, 3), 1, (1, 1, 1, 1), (6, 11), 40, True),
        ((3, 3), 2, (1, 1, 1, 1), (7, 14), 21, False),
        ((5, 5), 1, (2, 2, 2, 2), (5, 7), 16, True),
        ((2, 4), 2, (0, 1, 0, 0), (4, 6), 18, True),
        ((3, 3), 1, (1, 1, 1, 1), (7, 9), 16, True),
        ((3, 1), 1, (1, 1, 0, 0), (1, 3), 16, False),
    ],
)
def test_int8_depthwise_by_dot_products(
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int, int, int],
    size: tuple[int, int],
    channels: int,
    small: bool,
    tmp_path: Path,
    within_one: Any,
) -> None:
    dot, rng, zero = isa("sdot").int8, np.random.default_rng(0), 5
    top, bottom, left, right = padding
    height, width = size[0] + top + bottom, size[1] + left + right
    shape = ConvShape(1, height, width, channels, channels, kernel, (stride, stride), groups=channels)
    assert fits(shape, dot)
    x = rng.integers(-128, 128, (1, *size, channels)).astype(np.int8)
    weight = rng.integers(-127, 128, (channels, 1, *kernel)).astype(np.int8)
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))[:, ::stride, ::stride]
    sums = np.einsum("nhwcyx,cyx->nhwc", windows, weight[:, 0].astype(np.float64))
    scale, start = rng.uniform(0.001, 0.01, channels).astype("f4"), rng.integers(-3000, 3000, channels)
    constants = np.concatenate([scale, start * scale + 3]).astype("f4")
    if small:
        bounded = bounded_of(scale, start, 3, np.full(channels, 1 << 20))
        assert bounded is not None
        constants = pack_depthwise_bounded(bounded)
    made = depthwise_dots(shape, dot, limits=(-90, 127), padding=padding, zero=zero, small=small)
    result = emulate(made, "sdot", tmp_path, x, pack_depthwise_dots(shape, weight), constants, sums.astype(np.int8))
    real = (sums + start) * scale.astype(np.float64) + 3
    if small:
        rounded_once(result, real, (-90, 127))
    else:
        within_one(result, np.clip(np.rint(real), -90, 127))


def test_int8_addition(tmp_path: Path, within_one: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, 5000).astype(np.int8) for _ in range(2))
    of, to = (Affine(0.03, 7), Affine(0.011, -10)), Affine(0.04, 3)
    result = emulate(add_quantized(5000, "int8", of, to), "neon", tmp_path, a, b, np.zeros(5000, np.int8))
    real = (a.astype(np.float64) - 7) * 0.03 + (b.astype(np.float64) + 10) * 0.011
    within_one(result, np.clip(np.rint(real / 0.04) + 3, -128, 127))
