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
from deploykit_targets._recipe import board
from deploykit_targets._recipe.host import run_recipe
from deploykit_targets._recipe.portable import RECIPE
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
# Offered, and no evidence: there it refuses float32 products and computes what is placed in int8 in float16.
UNLIKE: Mapping[str, str] = {
    "sm_75": "not compiled: TensorRT for RTX has neither int8 nor float32 products for sm_75, and TensorRT has both"
}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a file.

    Attributes:
        version: of TensorRT for RTX.
        arch: that it compiled for, such as `sm_86`.
        layers: of the engine, in order.
    """

    version: str
    arch: str
    layers: tuple[EngineLayer, ...]


@dataclass(frozen=True)
class NotCompiled:
    """Why the compiler was not asked, or its refusal does not count."""

    reason: str


def is_installed() -> bool:
    """Whether the compiler's bindings are here."""
    return BINDINGS.installed


def compile_file(folder: Path, device: Device, arguments: Sequence[str] = ()) -> Compiled | NotCompiled:
    """Compile the model in an artifact's folder for the architecture nearest to `device`, in a child process.

    Args:
        folder: with `model.onnx`, `recipe.json` and the recipe's program.
        device: that the artifact is for.
        arguments: more of the recipe's command line.
    Raises:
        ConversionError: the compiler refuses the file, or crashed over it; carries its own words.
    """
    arch = NEAREST.get(device.arch)
    if arch is None:
        return NotCompiled(
            UNLIKE.get(device.arch, f"not compiled: NVIDIA's compiler offers nothing near {device.arch}")
        )
    if not is_installed():
        return NotCompiled(f"not compiled: {install_command(EXTRA)} lets NVIDIA's compiler read the file here")
    with tempfile.TemporaryDirectory(prefix="deploykit-compile-") as out:
        report = _compile(folder, (arch,), Path(out), arguments)
    return Compiled(report[RTX], arch, parse_listing(_one(report["listings"])))


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
        recipe: dict[str, Any] = {"model": str(model.resolve()), "arch": arch, "device": "", "precision": ""}
        recipe |= {"inputs": [], "outputs": [], "options": {}, "tolerance": {"min_sqnr_db": 0.0}}
        (Path(folder) / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")
        (found,) = compile_engine(Path(folder), (arch,))
    return found


def compile_engine(folder: Path, archs: Sequence[str], arguments: Sequence[str] = ()) -> tuple[Compiled, ...]:
    """Compile one engine for several architectures, and leave it in `folder` as `model.engine`.

    Raises:
        MissingDependencyError: the compiler is not installed.
        ConversionError: it refuses the file.
    """
    if not is_installed():
        raise MissingDependencyError(BINDINGS.project, extra=EXTRA, purpose="compile engines of TensorRT for RTX")
    report = _compile(folder, archs, folder, arguments)
    listings = report["listings"]
    return tuple(Compiled(report[RTX], arch, parse_listing(text)) for arch, text in zip(archs, listings, strict=False))


def _compile(folder: Path, archs: Sequence[str], out: Path, arguments: Sequence[str]) -> dict[str, Any]:
    command = [*arguments, "--out", str(out), "--compile-for", *archs]
    try:
        return run_recipe(folder / PROGRAM.name, command, python=sys.executable, toolchain="tensorrt-rtx")
    except DeviceError as error:  # no device is asked: the library died
        raise ConversionError(f"NVIDIA's compiler crashed over the model: {error.message}", hint=error.hint) from error


def _one(listings: Sequence[str]) -> str:
    if not listings:
        raise ConversionError("NVIDIA's compiler gave no listing of its layers", hint=install_command(EXTRA))
    return listings[-1]
