"""An artifact's ONNX file in ONNX Runtime on the CPU, as a stand-in for a runtime that is not here.

The graph is computed as it is written: no int8 kernels, which may saturate on processors without VNNI, and no fusions
beyond the basic ones, which are wrong on float8 q/dq nodes (2.7 dB instead of 30.7 dB with ONNX Runtime 1.31).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploykit.contract.errors import ConversionError
from deploykit.contract.host import this_host
from deploykit.contract.optional import require
from deploykit.contract.session import Session
from deploykit.contract.tensors import Feeds, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

_FATAL = 4


class ReferenceSession(Session):
    """Runs an ONNX model on the CPU as it is written.

    Args:
        inputs, outputs: specs of the artifact.
        model: path, or serialised.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        ConversionError: it refuses the model, when it is opened or when it is run.
    """

    concurrent: ClassVar[bool] = True  # `InferenceSession.run` is for any number of threads, says ONNX Runtime

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], model: Path | bytes) -> None:
        super().__init__(inputs, outputs, threads=this_host().cores)
        ort = require("onnxruntime", extra="onnxruntime-runtime", purpose="run the reference of an artifact")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, _FATAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._runtime = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a class per status, without a common base of its own
            raise ConversionError(f"ONNX Runtime refuses the model as a reference: {error}") from error
        self._names = [spec.name for spec in self.outputs]

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        try:
            found = self._runtime.run(self._names, dict(feeds))
        except Exception as error:  # as above
            raise ConversionError(f"ONNX Runtime cannot run the model as a reference: {error}") from error
        return dict(zip(self._names, found, strict=True))

    def _close(self) -> None:
        del self._runtime


def reference_model(path: Path, *, bfloat16: bool) -> Path | bytes:
    """What to run for an ONNX file.

    Args:
        path: the artifact's file.
        bfloat16: whether the device computes in bfloat16, which ONNX Runtime cannot: its float32 emulation is run.
    """
    if not bfloat16:
        return path
    import onnx

    from deploykit_targets._onnx.retype import BFLOAT16, emulated, retype

    model = onnx.load(str(path))
    if not any(tensor.data_type == BFLOAT16 for tensor in model.graph.initializer):
        retype(model, BFLOAT16)  # a float32 file that the device's compiler turns into bfloat16
    serialised: bytes = emulated(model).SerializeToString()
    return serialised
