"""Ask NVIDIA's compiler (TensorRT for RTX), which needs no GPU: would it take this file, and what does it make of it?

Its parser and builder are those of TensorRT's family; it compiles for some architectures only, so for other devices the
nearest one stands, and is named. It says what engine layers compute in, never what they give or how fast.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import ConversionError, DeviceError, MissingDependencyError, install_command
from deploykit_targets._on_device import board
from deploykit_targets._on_device.host import run_build_program
from deploykit_targets._on_device.portable import BLUEPRINT
from deploykit_targets._tensorrt import build_engine
from deploykit_targets._tensorrt.build_engine import RTX
from deploykit_targets._tensorrt.listing import EngineLayer, parse_listing
from deploykit_targets._tensorrt.requirements import BINDINGS, EXTRA, PROGRAM

if TYPE_CHECKING:
    from deploykit.contract.devices import Device

# Architecture of a device -> the one that the compiler is asked for: the same, or the nearest of its generation with
# the same types. Volta (sm_72) has none.
NEAREST: Mapping[str, str] = {
    **{arch: arch for arch in ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")},
    "sm_87": "sm_86",
    "sm_90": "sm_89",
    "sm_100": "sm_120",
    "sm_103": "sm_120",
    "sm_110": "sm_120",
}
# Operators that TensorRT has as plugins, and TensorRT for RTX has not: its refusal says nothing of TensorRT.
PLUGINS = ("DeformConv", "NonZero", "RoiAlign")
# Offered, and no evidence of TensorRT: see `tensorrt_rtx/scheme.py` for what it lacks there.
UNLIKE: Mapping[str, str] = {
    "sm_75": "not compiled: TensorRT has float32 products and int8 convolutions for sm_75, TensorRT for RTX has neither"
}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a file.

    Attributes:
        version: the version of TensorRT for RTX.
        arch: the architecture that it compiled for, such as `sm_86`.
        layers: the layers of the engine, in order.
        others: architectures that the same engine is for, too; its layers are then those that all of them have.
    """

    version: str
    arch: str
    layers: tuple[EngineLayer, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotCompiled:
    """Why the compiler was not asked, or its refusal does not count."""

    reason: str


def is_installed() -> bool:
    """Whether the compiler's bindings are here."""
    return BINDINGS.installed


def not_installed(extra: str) -> str:
    """One line that says what would let the compiler read the file."""
    return f"not compiled: {install_command(extra)} lets NVIDIA's compiler read the file here"


def compile_file(folder: Path, device: Device, arguments: Sequence[str] = ()) -> Compiled | NotCompiled:
    """Compile the model in an artifact's folder for the architecture nearest to `device`, in a child process.

    Args:
        folder: the folder, with `model.onnx`, `blueprint.json` and the build program.
        device: the device that the artifact is for.
        arguments: more of the build program's command line.
    Raises:
        ConversionError: the compiler refuses the file, or crashed over it; carries its own words.
    """
    arch = NEAREST.get(device.arch)
    if arch is None:
        return NotCompiled(
            UNLIKE.get(device.arch, f"not compiled: NVIDIA's compiler offers nothing near {device.arch}")
        )
    if not is_installed():
        return NotCompiled(not_installed(EXTRA))
    with tempfile.TemporaryDirectory(prefix="deploykit-compile-") as out:
        try:
            report = _compile(folder, (arch,), Path(out), arguments)
        except ConversionError as error:
            if plugin := _missing_plugin(error.message):
                return NotCompiled(f"not compiled: TensorRT has a plugin for {plugin}, and TensorRT for RTX has not")
            raise
    return Compiled(report[RTX], arch, parse_listing(_one(report["listings"])))


def _missing_plugin(message: str) -> str | None:
    """The operator that a refusal is about, where it is for want of a plugin that TensorRT itself ships."""
    lower = message.lower()
    if "unsupported reduction type" in lower:
        return "reductions of ScatterElements"
    return next((name for name in PLUGINS if "plugin" in lower and name.lower() in lower), None)


def compile_onnx(model: Path, arch: str) -> Compiled:
    """Compile any ONNX file with static shapes, whoever wrote it.

    Args:
        model: the file.
        arch: such as `sm_86`.
    Raises:
        MissingDependencyError: the compiler is not installed.
        ConversionError: it refuses the file.
    """
    with tempfile.TemporaryDirectory(prefix="deploykit-compile-") as folder:
        for module in (build_engine, board):
            shutil.copyfile(str(module.__file__), Path(folder) / Path(str(module.__file__)).name)
        blueprint: dict[str, Any] = {"model": str(model.resolve()), "arch": arch, "device": "", "precision": ""}
        blueprint |= {"inputs": [], "outputs": [], "options": {}, "tolerance": {"min_sqnr_db": 0.0}}
        (Path(folder) / BLUEPRINT).write_text(json.dumps(blueprint), encoding="utf-8")
        return compile_engine(Path(folder), (arch,))


def compile_engine(folder: Path, archs: Sequence[str], arguments: Sequence[str] = ()) -> Compiled:
    """Compile one engine for one architecture or several, and leave it in `folder` as `model.engine`.

    Args:
        folder: the folder, with the model, `blueprint.json` and the build program.
        archs: such as `sm_86`; the first is the one that the result is named after.
        arguments: more of the build program's command line.
    Raises:
        MissingDependencyError: the compiler is not installed.
        ConversionError: it refuses the file.
    """
    if not is_installed():
        raise MissingDependencyError(BINDINGS.project, extra=EXTRA, purpose="compile engines of TensorRT for RTX")
    report = _compile(folder, archs, folder, arguments)
    return Compiled(report[RTX], archs[0], parse_listing(_one(report["listings"])), tuple(archs[1:]))


def _compile(folder: Path, archs: Sequence[str], out: Path, arguments: Sequence[str]) -> dict[str, Any]:
    command = [*arguments, "--out", str(out), "--compile-for", *archs]
    try:
        return run_build_program(folder / PROGRAM.name, command, python=sys.executable, toolchain="tensorrt-rtx")
    except DeviceError as error:  # no device is asked: the library died
        raise ConversionError(f"NVIDIA's compiler crashed over the model: {error.message}", hint=error.hint) from error


def _one(listings: Sequence[str]) -> str:
    if not listings:
        raise ConversionError("NVIDIA's compiler gave no listing of its layers", hint=install_command(EXTRA))
    return listings[-1]
