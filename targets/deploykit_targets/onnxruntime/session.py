"""An ONNX file opened in ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploykit.session import OpTime, Session
from deploykit.tensors import Feeds
from deploykit_targets._onnx.runtime import inference_session, op_times

if TYPE_CHECKING:
    from deploykit.artifact import Artifact


class OnnxRuntimeSession(Session):
    """Runs an artifact's ONNX file; needs neither PyTorch nor the onnx package."""

    concurrent: ClassVar[bool] = True  # `InferenceSession.run` is for any number of threads, says ONNX Runtime

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        self._path = artifact.entry
        self._module_paths = {layer.name: layer.module_path for layer in artifact.achieved.layers}
        self._runtime = inference_session(self._path, threads=threads)
        self._names = [spec.name for spec in self.outputs]

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._runtime.run(self._names, feeds), strict=True))

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        """See `Session.op_times`; a second session counts, so that ordinary runs do not pay for it."""
        return op_times(self._path, feeds, threads=self.threads, runs=runs, module_paths=self._module_paths)

    def _close(self) -> None:
        del self._runtime
