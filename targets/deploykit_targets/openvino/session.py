"""An OpenVINO IR opened on the CPU plugin, and what its execution graph says of precisions and times."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.contract.errors import ArtifactError
from deploykit.contract.optional import require
from deploykit.contract.precision import Precision
from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import Feeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from deploykit.artifact.store import StoredArtifact

# OpenVINO computes in bf16 by default on CPUs with AMX; an artifact computes in what it was verified in.
_HINTS = {Precision.BF16: "bf16", Precision.FP16: "f16"}


def precision_hint(precision: Precision) -> str:
    """What OpenVINO's CPU plugin computes float layers in for an artifact of `precision`."""
    return _HINTS.get(precision, "f32")


def compile_ir(path: str, config: dict[str, Any]) -> Any:
    """Compile an IR for the CPU.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        ArtifactError: it refuses the file.
    """
    openvino = require("openvino", extra="openvino-runtime", purpose="run artifacts of openvino")
    core = openvino.Core()
    try:
        try:
            return core.compile_model(path, "CPU", config)
        except RuntimeError as error:
            if "Subgraph" not in str(error):
                raise
            return core.compile_model(path, "CPU", {**config, **_UNFUSED})
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO refuses {path}: {_reason(error)}", hint="export the model again") from error


def _reason(error: RuntimeError) -> str:
    """The last line of an exception of OpenVINO: the lines before name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# Chains of elementwise operators are not compiled into one kernel, which refuses int16, uint16, int64, float64 and bool
# although every operator by itself takes them; a property of the CPU plugin that its documentation does not list.
_UNFUSED = {"SNIPPETS_MODE": "DISABLE"}

# Quantize and dequantize run as written, and what lies between in float32; a property of the CPU plugin that its
# documentation does not list.
_IN_FLOAT = {"LP_TRANSFORMS_MODE": False}


class OpenVinoSession(Session):
    """Runs an artifact's IR on the CPU.

    Args:
        in_float: what is quantized is computed in float32 (8-bit weights on a CPU without VNNI).
    """

    def __init__(self, artifact: StoredArtifact, threads: int, *, in_float: bool = False) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        if artifact.entry.suffix != ".xml":  # OpenVINO has readers of other formats, with files of their own
            hint = "export the model again"
            raise ArtifactError(f"{artifact.manifest.entry} is no IR, and is not read", hint=hint)
        self._path = str(artifact.entry)
        self._config = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision_hint(artifact.manifest.precision),
        }
        if in_float:
            self._config |= _IN_FLOAT
        self._module_paths = artifact.achieved.module_paths
        self._compiled = compile_ir(self._path, self._config)
        self._request = self._compiled.create_infer_request()
        self._names = tuple(spec.name for spec in self.outputs)
        self._ports = tuple(self._compiled.output(name) for name in self._names)

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        results = self._request.infer(feeds)
        return {name: results[port] for name, port in zip(self._names, self._ports, strict=True)}

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        """See `Session.op_times`; a second compilation counts, so that ordinary runs do not pay for it."""
        compiled = compile_ir(self._path, {**self._config, "PERF_COUNT": True})
        request, parts = compiled.create_infer_request(), _parts(compiled)
        kinds, spent = dict[str, str](), dict[str, list[float]]()
        for _ in range(runs):
            request.infer(feeds)
            for info in request.profiling_info:
                kinds[info.node_name] = info.node_type
                spent.setdefault(info.node_name, []).append(info.real_time.total_seconds() * 1e6)
        owners = {name: next(filter(None, map(self._module_of, parts.get(name, (name,)))), "") for name in spent}
        times = (OpTime(name, kinds[name], owners[name], median(each)) for name, each in spent.items())
        return tuple(sorted((time for time in times if time.median_us > 0.0), key=lambda time: -time.median_us))

    def _module_of(self, name: str) -> str:
        """The module of an operator, or of a part of one: `linear_1/WithoutBiases`, `linear_1.matmul_1`."""
        layer, paths = name.split("/", maxsplit=1)[0], self._module_paths
        return paths.get(layer) or paths.get(layer.partition(".")[0], "")

    def _close(self) -> None:
        del self._ports, self._request, self._compiled


def _parts(compiled: Any) -> dict[str, tuple[str, ...]]:
    """The operators of the file that each executed one is made of, by its name: the last of them may be an output."""
    ops = compiled.get_runtime_model().get_ordered_ops()
    listed = ((op.get_friendly_name(), op.get_rt_info()) for op in ops)
    return {name: (name, *_text(facts[_ORIGINAL]).split(",")) for name, facts in listed if _ORIGINAL in facts}


_ORIGINAL = "originalLayersNames"
_PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


_RECURRENT = frozenset({"RNNSeq", "RNNCell"})
_PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution", "Deconvolution"})


def executed_precisions(
    path: Path,
    precision: Precision,
    layers: Iterable[str],
    *,
    folded: Mapping[str, str] | None = None,
    recurrent: Iterable[str] = (),
) -> dict[str, str]:
    """What each layer computes in, read from the execution graph of the CPU plugin.

    Args:
        path: the IR.
        precision: the precision of the artifact; decides what float layers compute in.
        layers: names in the captured graph, which the lowering keeps.
        folded: arithmetic with constants behind a layer -> the layer; where the layer is not there, it was taken in.
        recurrent: layers whose names OpenVINO drops; they are in what all its recurrent operators are in.
    Returns:
        Layer name to `int8`, `float32`, ...; layers that were fused away are missing.
    """
    compiled = compile_ir(str(path), {"INFERENCE_PRECISION_HINT": precision_hint(precision)})
    wanted = set(layers)
    found: dict[str, str] = {}
    taken_in: dict[str, str] = {}
    products: dict[str, set[str]] = {}
    sequences: set[str] = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if "layerType" not in facts or _text(facts["layerType"]) in ("Const", "Input", "Output", "Reorder"):
            continue
        runs_in = _PRECISIONS.get(_text(facts["runtimePrecision"]), _text(facts["runtimePrecision"]))
        kind = _text(facts["layerType"])
        if kind in _RECURRENT:
            sequences.add(runs_in)
        for name in _text(facts[_ORIGINAL]).split(","):
            layer = name.split("/")[0]
            if layer in wanted:
                found.setdefault(layer, runs_in)
            elif (owner := layer.partition(".")[0]) in wanted and kind in _PRODUCTS:
                products.setdefault(owner, set()).add(runs_in)
            if folded and layer in folded:
                taken_in[folded[layer]] = runs_in
    everywhere = dict.fromkeys(recurrent, sequences.pop()) if len(sequences) == 1 else {}
    # of a layer in parts the product counts, and not what adds its bias; of several products the widest
    multiplied = {layer: max(each, key=lambda runs: runs != "int8") for layer, each in products.items()}
    return {**everywhere, **taken_in, **found, **multiplied}


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
