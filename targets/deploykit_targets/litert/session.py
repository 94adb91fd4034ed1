"""A .tflite file opened in LiteRT's interpreter, or in that of tflite-runtime where only that is installed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np

from deploykit.contract.errors import ArtifactError, MissingDependencyError
from deploykit.contract.optional import Requirement, require
from deploykit.contract.precision import Precision
from deploykit.contract.session import Session
from deploykit.contract.tensors import Feeds, TensorSpec

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact

Convert = Callable[[np.ndarray], np.ndarray]
_NOT_FOR_OLD_RUNTIME = (Precision.INT8_DYNAMIC, Precision.INT4_WEIGHT_ONLY, Precision.INT16X8)
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Place:
    """An input or output as the file has it; see `boundary`."""

    dtype: Literal["bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64"]
    layout: str | None = None
    scale: float | None = None
    zero_point: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] = 0


@dataclass(frozen=True)
class Interface:
    """What is read of the metadata `file`."""

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    rounded_at_run_time: tuple[str, ...] = ()


class LiteRTSession(Session):
    """Runs an artifact's .tflite file on the CPU.

    It takes and gives what the model does; where the file's layout or types are others, arrays are converted.
    """

    def __init__(self, artifact: StoredArtifact, threads: int) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        interface = artifact.manifest.recorded(Interface, "file")
        _check_runtime(artifact.manifest.precision, dynamic=bool(interface.rounded_at_run_time))
        kernels = artifact.manifest.options.get("kernels", "xnnpack")
        self._interpreter = open_interpreter(artifact.entry_bytes(), threads, kernels, name=artifact.path.name)
        self._check_places(interface)
        # The file has its inputs and outputs in the order of the manifest.
        places = (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        self._into = [
            (spec.name, place["index"], _into_file(spec, entry))
            for spec, place, entry in zip(self.inputs, places[0], interface.inputs, strict=True)
        ]
        self._from = [
            (spec.name, place["index"], _from_file(spec, entry))
            for spec, place, entry in zip(self.outputs, places[1], interface.outputs, strict=True)
        ]

    def _check_places(self, interface: Interface) -> None:
        """Refuse a manifest that does not fit its file."""
        details = (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        for specs, found, said in zip(
            (self.inputs, self.outputs), details, (interface.inputs, interface.outputs), strict=True
        ):
            if not len(specs) == len(found) == len(said):
                raise ArtifactError(
                    f"the file has {len(found)} inputs or outputs, the manifest {len(specs)}",
                    hint="export the model again",
                )

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        interpreter = self._interpreter
        for name, index, convert in self._into:
            interpreter.set_tensor(index, convert(feeds[name]))
        interpreter.invoke()
        # get_tensor copies: the next run writes to the same memory
        return {name: convert(interpreter.get_tensor(index)) for name, index, convert in self._from}

    def _close(self) -> None:
        del self._interpreter


def open_interpreter(model: bytes | str, threads: int, kernels: str, *, name: str = "the file") -> Any:
    """Open a file and allocate its tensors.

    Args:
        model: path, or the file's bytes: a file that is cut while the runtime maps it would end this process.
        name: for messages.
        kernels: `xnnpack`, `builtin` or `reference`.
    Raises:
        MissingDependencyError: neither runtime is installed.
        ArtifactError: the runtime refuses the file.
    """
    runtime = _runtime()
    resolvers = runtime.OpResolverType
    resolver = {
        "xnnpack": resolvers.AUTO,
        "builtin": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": resolvers.BUILTIN_REF,
    }.get(kernels)
    if resolver is None:
        raise ArtifactError(f"{name}: {kernels!r} are no kernels of LiteRT", hint="export the model again")
    source = {"model_content": model} if isinstance(model, bytes) else {"model_path": model}
    try:
        with _quiet_runtime():
            interpreter = runtime.Interpreter(**source, num_threads=threads, experimental_op_resolver_type=resolver)
            interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"LiteRT refuses {name}: {error}", hint="export again, or update ai-edge-litert") from error
    return interpreter


@contextlib.contextmanager
def _quiet_runtime() -> Iterator[None]:
    """Keep what the runtime's native code says ("Created ... delegate") off the terminal; it has no switch for it."""
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _runtime() -> Any:
    package = "tflite_runtime" if _only_old_runtime() else "ai_edge_litert"
    return require(f"{package}.interpreter", extra="litert-runtime", purpose="run artifacts of litert")


def _only_old_runtime() -> bool:
    return Requirement("tflite_runtime").installed and not Requirement("ai_edge_litert").installed


def _check_runtime(precision: Precision, *, dynamic: bool) -> None:
    """Refuse what tflite-runtime computes wrongly without a word, or cannot run.

    Seen with its last version, 2.14: one scale for all channels of a dynamic int8 FULLY_CONNECTED (1 dB), no int4, and
    an XNNPACK that takes 16-bit activations and then fails.
    """
    if _only_old_runtime() and (dynamic or precision in _NOT_FOR_OLD_RUNTIME):
        purpose = f"run this {precision} file (tflite-runtime, which is installed, gives wrong results or none)"
        purpose += '; or export int8 with options={"io": "int8"}' if dynamic else ""
        raise MissingDependencyError("ai-edge-litert", extra="litert-runtime", purpose=purpose)


def _into_file(spec: TensorSpec, entry: Place) -> Convert:
    permute = entry.layout == "NHWC" and spec.layout != "NHWC"
    if entry.dtype == spec.dtype and not permute:
        return _same

    def convert(array: np.ndarray) -> np.ndarray:
        array = array.transpose(_TO_NHWC) if permute else array
        if entry.dtype != spec.dtype and entry.scale is not None:
            limits = np.iinfo(entry.dtype)
            rounded = np.rint(array / np.float32(entry.scale)) + entry.zero_point
            array = rounded.clip(limits.min, limits.max)
        return np.asarray(array, entry.dtype, order="C")

    return convert


def _from_file(spec: TensorSpec, entry: Place) -> Convert:
    permute = entry.layout == "NHWC" and spec.layout != "NHWC"
    if entry.dtype == spec.dtype and not permute:
        return _same

    def convert(array: np.ndarray) -> np.ndarray:
        if entry.dtype != spec.dtype and entry.scale is not None:
            array = (array.astype(np.float32) - np.float32(entry.zero_point)) * np.float32(entry.scale)
        array = array.transpose(_TO_NCHW) if permute else array
        return np.asarray(array, spec.dtype, order="C")

    return convert


def _same(array: np.ndarray) -> np.ndarray:
    return array
