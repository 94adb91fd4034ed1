"""A small quantised model compiled by hand: quantise, two convolutions, an addition, dequantise."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.artifact.manifest import VERIFIED, Manifest
from deploykit.artifact.store import StoredArtifact
from deploykit.contract.achieved import Achieved
from deploykit.contract.devices import Device, load_devices
from deploykit.contract.precision import Precision
from deploykit.contract.tensors import TensorSpec
from deploykit.pipeline.staging import list_files
from deploykit_targets.tvm.program import ALIGNMENT, Operand, Port, Program, Region, Step

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "amx"))
from emulated import Tiles, compile_emulator

DEVICES = Path(__file__).parents[3] / "targets/deploykit_targets/tvm/devices.toml"
SIDE, CHANNELS = 12, 32


@dataclass(frozen=True)
class Made:
    """A compiled model and what it should compute, up to one unit of the last scale."""

    device: str
    folder: Path
    library: Any
    program: Program
    feeds: dict[str, np.ndarray]
    expected: np.ndarray


class Places:
    """Hands out aligned offsets of a region."""

    def __init__(self) -> None:
        self.bytes = 0

    def take(self, size: int) -> int:
        at = self.bytes
        self.bytes += -(-size // ALIGNMENT) * ALIGNMENT
        return at


def make_model(device: Device, folder: Path) -> Made:
    """Compile for a device; `x` is float32 [1, 12, 12, 32], weights are 1x1."""
    tvm = pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
    from deploykit_targets.tvm.build import build_library
    from deploykit_targets.tvm.kernels.conv import conv
    from deploykit_targets.tvm.kernels.conv_plan import ConvShape, pack_conv, pack_conv_constants, plan_conv
    from deploykit_targets.tvm.kernels.elementwise import add_quantized, dequantize, quantize
    from deploykit_targets.tvm.kernels.expressions import Affine
    from deploykit_targets.tvm.kernels.isa import isa
    from deploykit_targets.tvm.processor import processor_of

    rng = np.random.default_rng(0)
    dot = isa(processor_of(device).isa).int8
    zero = 128 if dot.activation == "uint8" else 0
    to = Affine(0.05, zero)
    plan = plan_conv(ConvShape(1, SIDE, SIDE, CHANNELS, CHANNELS), dot)
    count = plan.output_elements
    kernels = {
        "quantize_0": quantize(count, dot.activation, to),
        "conv_0": conv(plan),
        "add_0": add_quantized(count, dot.activation, (to, to), to),
        "dequantize_0": dequantize(count, dot.activation, to),
    }
    x = rng.normal(0, 2, (1, SIDE, SIDE, CHANNELS)).astype("f4")
    weight = rng.integers(-20, 21, (CHANNELS, CHANNELS, 1, 1)).astype(np.int8)
    scale = np.full(CHANNELS, 1 / 100, "f4")
    sums_of_weights = weight.reshape(CHANNELS, -1).sum(1)
    bias = (zero - zero * sums_of_weights * scale).astype("f4")
    packed, constants = pack_conv(plan, weight), pack_conv_constants(plan, bias, scale)

    consts, arena = Places(), Places()
    weight_at, constant_at = consts.take(packed.nbytes), consts.take(constants.nbytes)
    data = np.zeros(consts.bytes, np.uint8)
    data[weight_at : weight_at + packed.nbytes] = packed.view(np.uint8).ravel()
    data[constant_at : constant_at + constants.nbytes] = constants.view(np.uint8).ravel()
    x_at, y_at = arena.take(4 * count), arena.take(4 * count)
    a_at, b_at, c_at = arena.take(plan.input_elements), arena.take(count), arena.take(count)

    def here(at: int, dtype: str, elements: int = count) -> Operand:
        return Operand(Region.ARENA, at, elements, dtype)

    quantised = dot.activation
    weights = (
        Operand(Region.CONSTANTS, weight_at, packed.size, str(packed.dtype)),
        Operand(Region.CONSTANTS, constant_at, constants.size, "float32"),
    )
    macs = plan.macs
    program = Program(
        inputs=(Port("x", x.shape, "float32", x_at),),
        outputs=(Port("y", x.shape, "float32", y_at),),
        steps=(
            Step("quantize_0", (here(x_at, "float32"), here(a_at, quantised)), "quantize", "quantize"),
            Step(
                "conv_0",
                (here(a_at, quantised, plan.input_elements), *weights, here(b_at, quantised)),
                "conv",
                "conv",
                macs,
                True,
            ),
            Step("add_0", (here(a_at, quantised), here(b_at, quantised), here(c_at, quantised)), "add", "add"),
            Step("dequantize_0", (here(c_at, quantised), here(y_at, "float32")), "add", "dequantize"),
        ),
        constant_bytes=consts.bytes,
        arena_bytes=arena.bytes,
    )
    module = tvm.IRModule({name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()})
    library = build_library(module, program, data.tobytes(), device, folder)
    return Made(device.name, folder, library, program, {"x": x}, _reference(x, weight, scale))


def _reference(x: np.ndarray, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """In units of 0.05, symmetric around 0; int8 and uint8 with zero point 128 have the same range."""
    a = np.clip(np.rint(x.astype("f8") / np.float32(0.05)), -128, 127)
    b = np.clip(np.rint((a @ weight[:, :, 0, 0].T.astype("f8")) * scale), -128, 127)
    expected: np.ndarray = np.clip(a + b, -128, 127) * 0.05
    return expected


def _artifact_of(made: Made) -> StoredArtifact:
    from deploykit_targets.tvm.build import METADATA

    def specs(ports: tuple[Port, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(port.name, port.shape, port.dtype) for port in ports)

    program, device = made.program, made.device
    manifest = Manifest(
        deploykit_version="0.1.0",
        target=device,
        toolchain="tvm",
        device=device,
        precision=Precision.INT8,
        status=VERIFIED,
        entry="model.so",
        inputs=specs(program.inputs),
        outputs=specs(program.outputs),
        files=list_files(made.folder),
        achieved=Achieved.count("int8", (), source="nothing"),
        tool_versions={},
        fingerprints={},
        metadata={METADATA: made.library.metadata},
    )
    return StoredArtifact(made.folder, manifest, vouched="made here")


@pytest.fixture(scope="session")
def artifact_of() -> Callable[[Made], Any]:
    """What sessions need of an artifact, of a compiled model."""
    return _artifact_of


@pytest.fixture(scope="session")
def compile_into() -> Callable[[str, Path], Made]:
    """(device, folder) -> compiled model of the test's own."""

    def compile_for(name: str, folder: Path) -> Made:
        device = load_devices(DEVICES, toolchain="tvm")[name]
        if device.arch == "arm64" and platform.machine() != "aarch64":
            _skip_without("aarch64-linux-gnu-gcc", "qemu-aarch64-static")
        return make_model(device, folder)

    return compile_for


@pytest.fixture(scope="session")
def compiled(
    tmp_path_factory: pytest.TempPathFactory, compile_into: Callable[[str, Path], Made]
) -> Callable[[str], Made]:
    """Device -> compiled model; each is compiled once and must not be changed."""
    made: dict[str, Made] = {}

    def once(name: str) -> Made:
        if name not in made:
            made[name] = compile_into(name, tmp_path_factory.mktemp(name))
        return made[name]

    return once


@pytest.fixture(scope="session")
def amx_emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that executes the tile instructions of AMX; see `amx/emulator.c`."""
    return compile_emulator(tmp_path_factory.mktemp("amx"))


@pytest.fixture
def tiles(amx_emulator: Path) -> Iterator[Tiles]:
    """The emulator in this process, for as long as a test runs."""
    loaded = Tiles(amx_emulator)
    loaded.install()
    yield loaded
    loaded.remove()


@pytest.fixture(scope="session")
def export_of_variants() -> Callable[..., Any]:
    """(target, folder, precision=int8) -> an artifact: layers that registers fill and do not, a depthwise one."""

    def export(target: str, folder: Path, precision: str = "int8") -> Any:
        import torch
        from torch import nn

        import deploykit

        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.ReLU()),
            *(nn.Conv2d(32, 72, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(72, 10)),
        ).eval()
        given = {"calibration": [(torch.randn(1, 3, 16, 16),) for _ in range(8)]} if precision == "int8" else {}
        return deploykit.export(
            model,
            target=target,
            precision=precision,
            example_inputs=(torch.randn(1, 3, 16, 16),),
            **given,
            output=folder,
            profile=False,
            progress=False,
        )

    return export


def _skip_without(*programs: str) -> None:
    if not all(map(shutil.which, programs)):
        pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static")
