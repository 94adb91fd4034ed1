"""Captured model -> `.pt2` package, compiled by AOTInductor for this machine's CPU or its GPU."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._inductor import aoti_compile_and_package
from torch.export.passes import move_to_device_pass

from deploykit._optional import versions
from deploykit.errors import ConversionError, DeviceError
from deploykit.host import this_host
from deploykit.precision import Precision
from deploykit.quiet import kept_quiet
from deploykit.target import Conversion, ConversionJob
from deploykit_calibration.layers import float_layers, reconcile
from deploykit_targets.aotinductor.retype import retyped

if TYPE_CHECKING:
    from deploykit.devices import Device

ENTRY = "model.pt2"
_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_NAMES = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.BF16: "bfloat16"}


def convert(job: ConversionJob) -> Conversion:
    """Write `model.pt2`.

    Raises:
        DeviceError: the device is a GPU, and this machine has none of its architecture.
        ConversionError: the compiler refused.
    """
    place = torch_device(job.device)
    log: list[str] = []
    with kept_quiet(log):
        program: Any = job.captured.export_program(retyped(job.captured, _DTYPES[job.precision]))
        if place == "cuda":
            program = move_to_device_pass(program, place)
        try:
            _compile(program, job.folder / ENTRY, job.options.max_autotune)
        except Exception as error:  # the compiler's errors have no common base
            raise ConversionError(
                f"AOTInductor cannot compile the model: {error}",
                hint="a C++ compiler is needed; see `deploykit doctor`",
            ) from error
    executed = {layer.name: _NAMES[job.precision] for layer in float_layers(job.captured)}
    return Conversion(
        entry=ENTRY,
        achieved=reconcile(job.precision, float_layers(job.captured), executed, source="types of the compiled graph"),
        tool_versions=versions("torch"),
        log="\n".join(log),
        metadata={"compiled_for": compiled_for(job.device), "torch_device": place},
    )


def _compile(program: Any, path: Path, max_autotune: bool) -> None:
    # Kernels ask at run time how many threads there are, so that `open(threads=)` means something.
    configs = {"max_autotune": max_autotune, "cpp.dynamic_threads": True}
    aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    _canonical(path)


def _canonical(path: Path) -> None:
    """Drop the generated sources, which hold this machine's compile commands, and the random identifier.

    What is left (native code, constants, versions) is the same for the same model, compiler and CPU.
    """
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".cpp")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(kept.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, b"0" * len(data) if name.endswith("serialization_id") else data)


def torch_device(device: Device) -> str:
    """`cpu` or `cuda`.

    Raises:
        DeviceError: the device is a GPU that this machine does not have, or PyTorch was built without CUDA.
    """
    if not device.arch.startswith("sm_"):
        return "cpu"
    if not torch.cuda.is_available():
        built = "has no CUDA" if torch.version.cuda is None else "finds no GPU"
        raise DeviceError(
            f"{device.name} is not here: this PyTorch {built}, and AOTInductor compiles on the GPU it compiles for",
            hint=f'export on a machine with the GPU, or use target="{device.name}" (TensorRT, built on the device)',
        )
    major, minor = torch.cuda.get_device_capability()
    if f"sm_{major}{minor}" != device.arch:
        raise DeviceError(f"{device.name} is {device.arch}; the GPU here is sm_{major}{minor}")
    return "cuda"


def compiled_for(device: Device) -> str:
    """What the native code needs: the instruction sets of this CPU, or the architecture of the GPU."""
    if device.arch.startswith("sm_"):
        return device.arch
    return " ".join((this_host().arch, *this_host().isa))
