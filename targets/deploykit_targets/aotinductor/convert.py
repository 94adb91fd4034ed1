"""Captured model -> `.pt2` package, compiled by AOTInductor for this machine's CPU or its GPU."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._inductor import aoti_compile_and_package
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from deploykit.contract.errors import ConversionError, DeviceError, UnsupportedPrecisionError
from deploykit.contract.host import this_host
from deploykit.contract.optional import versions
from deploykit.contract.precision import Precision
from deploykit.contract.quiet import kept_quiet
from deploykit.plugin.target import Payload
from deploykit_calibration.layers import reconcile
from deploykit_targets._float16 import Float16Plan, plan_float16
from deploykit_targets._schemes.recurrent import notes_on_steps
from deploykit_targets.aotinductor.compiling import OPTIONS, without_paths
from deploykit_targets.aotinductor.count import integer_layers, weight_owners
from deploykit_targets.aotinductor.program import PROGRAM
from deploykit_targets.aotinductor.retype import retyped
from deploykit_targets.aotinductor.sharing import packed_once

if TYPE_CHECKING:
    from deploykit.contract.devices import Device
    from deploykit_calibration.prepared import Prepared

ENTRY = "model.pt2"
_STEPS = (
    "two LSTM layers took 3 times as long as in fp32 with 128 units, and 1.1 times with 512 (AVX2 without VNNI, one"
    " thread)"
)
_HASHED = re.compile(r"/[^/.]+\.wrapper")  # files are called by a hash over this machine's paths
_NAMING = ".wrapper.cpp"
_GENERATED = (".cpp", ".kernel_metadata.json")  # the latter says of a kernel's source what is known of the whole
_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_NAMES = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.BF16: "bfloat16"}


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write `model.pt2`.

    Raises:
        DeviceError: the device is a GPU, and this machine has none of its architecture.
        CalibrationError: int8 without a table.
        ConversionError: the compiler refused.
    """
    place = torch_device(prepared.device)
    graph_module, plan = _typed(prepared)
    log: list[str] = []
    with kept_quiet(log):
        program: Any = prepared.captured.export_program(graph_module)
        if place == "cuda":
            program = move_to_device_pass(program, place)
        if prepared.options.runtime == "compile":
            return _kept(program, prepared, folder, place)
        try:
            _compile(program, prepared, folder / ENTRY)
        except Exception as error:  # the compiler's errors have no common base
            raise ConversionError(
                f"AOTInductor cannot compile the model: {error}",
                hint="a C++ compiler is needed; see `deploykit doctor`",
            ) from error
    executed = _executed(prepared, plan, folder / ENTRY)
    notes = notes_on_steps(prepared, _STEPS)
    counted = reconcile(prepared, executed, source="the compiler's generated code", notes=notes)
    _canonical(folder / ENTRY)
    return Payload(
        entry=ENTRY,
        achieved=plan.listed(counted, prepared.captured),
        tool_versions=versions("torch"),
        log="\n".join(log),
        metadata={"compiled_for": compiled_for(prepared.device), "torch_device": place},
    )


def _kept(program: Any, prepared: Prepared, folder: Path, place: str) -> Payload:
    """The program itself as payload; what each layer computes in is what its tensors' types say.

    Raises:
        UnsupportedPrecisionError: int8, whose kernels only the package's compiler is given.
    """
    if prepared.precision is Precision.INT8:
        raise UnsupportedPrecisionError('runtime="compile" has no int8', hint='runtime="package", or precision="bf16"')
    torch.export.save(program, folder / PROGRAM)
    executed = {layer.name: _NAMES[prepared.precision] for layer in prepared.layers}
    return Payload(
        entry=PROGRAM,
        achieved=reconcile(prepared, executed, source="types of the exported program"),
        tool_versions=versions("torch"),
        metadata={"compiled_for": compiled_for(prepared.device), "torch_device": place},
    )


def _typed(prepared: Prepared) -> tuple[GraphModule, Float16Plan]:
    """What is compiled, and what of it stays float32 in a float16 model."""
    if prepared.precision is Precision.INT8:
        return prepared.graph_module, Float16Plan()
    plan = plan_float16(prepared) if prepared.precision is Precision.FP16 else Float16Plan()
    return retyped(prepared.captured, _DTYPES[prepared.precision], plan.kept), plan


def _executed(prepared: Prepared, plan: Float16Plan, path: Path) -> dict[str, str]:
    """Layer name to precision. Float graphs are typed throughout; int8 is what calls an integer kernel."""
    if prepared.precision is not Precision.INT8:
        own = _NAMES[prepared.precision]
        return {layer.name: "float32" if layer.name in plan.kept else own for layer in prepared.layers}
    integer = integer_layers(path, prepared.layers, weight_owners(prepared.graph_module.graph))
    return {layer.name: "int8" if layer.name in integer else "float32" for layer in prepared.layers if layer.macs}


def _compile(program: Any, prepared: Prepared, path: Path) -> None:
    configs = {
        "max_autotune": prepared.options.max_autotune,
        # kernels ask at run time how many threads there are, so that `open(threads=)` means something
        "cpp.dynamic_threads": True,
        # the compiler looks for q/dq patterns only where weights are constants that it may pack
        "freezing": prepared.precision is Precision.INT8,
        **OPTIONS,
    }
    with torch.no_grad(), without_paths(), packed_once():
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)


def _canonical(path: Path) -> None:
    """Empty the generated sources, which hold this machine's compile commands, and drop the random identifier.

    What is left (native code, constants, versions) is the same for the same model, compiler and CPU. The names of the
    sources stay: PyTorch before 2.13 finds a package's metadata by them.
    """
    with zipfile.ZipFile(path) as archive:
        kept = {
            name: b"" if name.endswith(_NAMING) else archive.read(name)
            for name in archive.namelist()
            if name.endswith(_NAMING) or not name.endswith(_GENERATED)
        }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(kept.items()):
            entry = zipfile.ZipInfo(_HASHED.sub("/generated.wrapper", name), (1980, 1, 1, 0, 0, 0))
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
