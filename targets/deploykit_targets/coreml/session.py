"""A Core ML model opened: in Core ML on macOS, in the evaluator of its form in this folder elsewhere.

Both take the captured model's own tensors: an image input is turned back into pixels, 64-bit integers become the 32-bit
ones that Core ML has, a classifier gives its probabilities in the order of the labels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from deploykit.contract.errors import ArtifactError, UsageError
from deploykit.contract.optional import require
from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import Feeds, TensorSpec
from deploykit.contract.turns import threads_here
from deploykit_targets.coreml import interface
from deploykit_targets.coreml.target import CoreMLOptions

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit_targets.coreml.mil_evaluator import Program
    from deploykit_targets.coreml.mil_evaluator.specs import ValueSpec
    from deploykit_targets.coreml.nn_evaluator import Network

Array = np.ndarray[Any, Any]

_NETWORK_SUFFIX = ".mlmodel"
_UNITS = {
    "all": "ALL",
    "cpu-only": "CPU_ONLY",
    "cpu-and-gpu": "CPU_AND_GPU",
    "cpu-and-neural-engine": "CPU_AND_NE",
}


def open_session(artifact: StoredArtifact, threads: int, *, native: bool) -> Session:
    """Open an artifact in Core ML (`native`) or in the evaluator."""
    return CoreMLSession(artifact) if native else EvaluatorSession(artifact, threads)


def model_path(artifact: StoredArtifact) -> Path:
    """What Core ML opens: the package around its manifest, or the one file of the old form."""
    entry = artifact.entry
    return entry if entry.suffix == _NETWORK_SUFFIX else entry.parent


def evaluator(path: Path) -> Program | Network:
    """The model at `path` in the evaluator of its form.

    Raises:
        ArtifactError: it is damaged, or of neither form.
        ConversionError: it holds an op or a layer without a rule.
    """
    if path.suffix == _NETWORK_SUFFIX:
        from deploykit_targets.coreml.nn_evaluator import load as load_network

        return load_network(path)
    from deploykit_targets.coreml.mil_evaluator import load

    return load(path)


class EvaluatorSession(Session):
    """Runs an artifact's program in PyTorch: evidence of level `reference`."""

    def __init__(self, artifact: StoredArtifact, threads: int) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads_here(threads, "torch"))
        require("torch", extra="coreml", purpose="evaluate ML Programs where Core ML is not")
        self._border = Border(artifact)
        self._program = evaluator(model_path(artifact))

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        with _torch_threads(self.threads):
            results = self._program.run(self._border.into(feeds))
        return {spec.name: self._border.out(spec, results[self._border.name(spec)]) for spec in self.outputs}


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ProgramSession(Session):
    """Any .mlpackage or .mlmodel in its evaluator, also one made by others. State lives for the session."""

    def __init__(self, path: Path, threads: int) -> None:
        require("torch", extra="coreml", purpose="evaluate Core ML models")
        program = evaluator(path)
        self._evaluate: Callable[[Feeds], dict[str, Array]] = program.run
        if path.suffix != _NETWORK_SUFFIX and (stateful := cast("Program", program)).states:
            self._evaluate = partial(stateful.run, state=stateful.make_state())
        given = [spec for spec in program.inputs if spec.default is None]
        super().__init__(
            [_spec(s) for s in given], [_spec(s) for s in program.outputs], threads=threads_here(threads, "torch")
        )

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        with _torch_threads(self.threads):
            return self._evaluate(dict(feeds))


def _spec(value: ValueSpec) -> TensorSpec:
    from deploykit_targets.coreml.mil_evaluator.dtypes import numpy_dtype

    shape = tuple(f"{value.name}_{axis}" if size is None else size for axis, size in enumerate(value.shape))
    dtype = "str" if value.dtype == "str" else np.dtype(numpy_dtype(value.dtype)).name
    return TensorSpec(value.name, shape, dtype)


@dataclass(frozen=True)
class MadeFor:
    """What is read of the metadata."""

    made_for: dict[str, str] = field(default_factory=dict)


class CoreMLSession(Session):
    """Runs an artifact in Core ML on macOS. Core ML decides itself how many threads it uses: 0 here."""

    def __init__(self, artifact: StoredArtifact) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=0)
        tools = require("coremltools", extra="coreml-runtime", purpose="run artifacts of coreml")
        self._tools = tools
        options = artifact.manifest.chosen(CoreMLOptions)
        self._units = tools.ComputeUnit[_UNITS[options.compute_units]]
        self._border = Border(artifact)
        self._labels = options.class_labels
        self._module_paths = artifact.achieved.module_paths
        self._made_for: dict[str, str] = artifact.manifest.recorded(MadeFor).made_for
        self._has_costs = artifact.entry.suffix != _NETWORK_SUFFIX
        self._model = tools.models.MLModel(str(model_path(artifact)), compute_units=self._units)

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        results = self._model.predict(self._border.into(feeds, images=True))
        return {
            spec.name: self._border.out(spec, self._array(results[self._border.name(spec)])) for spec in self.outputs
        }

    def _array(self, value: Any) -> Array:
        """A classifier gives a probability for each label."""
        return np.asarray([value[label] for label in self._labels] if isinstance(value, dict) else value)

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        """Core ML's own estimate of each op's share, times the measured run; the op's unit stands behind its type.

        None for the old form: Core ML estimates costs of ML Programs only.
        """
        if not self._has_costs:
            return ()
        import time
        from statistics import median

        from coremltools.models.compute_plan import MLComputePlan

        self._run(feeds)
        spent = []
        for _ in range(runs):
            start = time.perf_counter()
            self._run(feeds)
            spent.append(time.perf_counter() - start)
        whole_us = median(spent) * 1e6
        plan = MLComputePlan.load_from_path(self._model.get_compiled_model_path(), self._units)
        times = []
        for op in plan.model_structure.program.functions["main"].block.operations:
            cost = plan.get_estimated_cost_for_mlprogram_operation(op)
            usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
            if cost is None or not cost.weight:
                continue
            unit = type(usage.preferred_compute_device).__name__.removeprefix("ML") if usage else "unknown unit"
            name = op.outputs[0].name if op.outputs else op.operator_name
            path = self._module_paths.get(self._made_for.get(name, ""), "")
            times.append(OpTime(name, f"{op.operator_name} on {unit}", path, cost.weight * whole_us))
        return tuple(sorted(times, key=lambda each: -each.median_us))

    def _close(self) -> None:
        del self._model


class Border:
    """Turns the captured model's arrays into what a program takes, and back."""

    def __init__(self, artifact: StoredArtifact) -> None:
        options = artifact.manifest.chosen(CoreMLOptions)
        self._probabilities = interface.PROBABILITIES if options.class_labels else ""
        if artifact.entry.suffix == _NETWORK_SUFFIX:
            self._probabilities = ""  # the old form keeps the output's own name
        self._image, self._color = options.image_input, options.image_color
        self._scale = np.float32(options.image_scale)
        self._bias = np.asarray(options.image_bias, dtype=np.float32).reshape(-1, 1, 1)

    def name(self, spec: TensorSpec) -> str:
        """Name of an output in the program; a classifier's probabilities have one of their own."""
        return self._probabilities or spec.name

    def into(self, feeds: Feeds, *, images: bool = False) -> dict[str, Any]:
        """Arrays for the program.

        Args:
            feeds: the feeds, by input name, as captured.
            images: turn the image input into an 8-bit picture, as apps feed it (rounded to whole pixel values); else
                into the program's tensor of pixel values.
        """
        arrays: dict[str, Any] = {}
        for name, array in feeds.items():
            if name == self._image:
                pixels = (array - self._bias) / self._scale
                arrays[name] = self._picture(pixels) if images else pixels.astype(np.float32)
            else:
                arrays[name] = _narrowed(name, array)
        return arrays

    def _picture(self, pixels: Array) -> Any:
        from PIL import Image

        planes = np.clip(np.rint(pixels[0]), 0, 255).astype(np.uint8)
        if self._color == "GRAYSCALE":
            return Image.fromarray(planes[0])
        return Image.fromarray(np.moveaxis(planes if self._color == "RGB" else planes[::-1], 0, -1))

    def out(self, spec: TensorSpec, array: Array) -> Array:
        """An output as captured: its dtype, and the rank that Core ML has no form for (scalars, rows of labels).

        Raises:
            ArtifactError: the program gives another number of elements than the captured model.
        """
        shape = [size for size in spec.shape if isinstance(size, int)]
        if len(shape) == len(spec.shape) and array.size != math.prod(shape):
            raise ArtifactError(
                f"the written model gives {spec.name!r} in shape {array.shape}, and the captured one in {spec.shape}",
                hint="its layers mean something else in Core ML; please report the model",
            )
        if len(shape) == len(spec.shape) and array.shape != tuple(shape):
            array = array.reshape(shape)
        return array.astype(spec.dtype)


def _narrowed(name: str, array: Array) -> Array:
    """Integers and truth values as integers of 32 bits, the only ones that a program takes; float64 as float32.

    Raises:
        UsageError: a value does not fit.
    """
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype.kind not in "biu" or array.dtype == np.int32:
        return array
    narrow = array.astype(np.int32)
    if not np.array_equal(narrow, array):
        raise UsageError(f"input {name!r} has values that 32 bits do not hold; Core ML has no 64-bit integers")
    return narrow
