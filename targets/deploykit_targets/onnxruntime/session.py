"""An ONNX file opened in ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploykit.contract.errors import ConversionError, DeviceError
from deploykit.contract.host import this_host
from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import Feeds
from deploykit_targets._onnx.external import check_external_data
from deploykit_targets._onnx.runtime import inference_session, op_times
from deploykit_targets._onnx.vnni import needs_exact

if TYPE_CHECKING:
    import onnxruntime

    from deploykit.artifact.store import StoredArtifact


class OnnxRuntimeSession(Session):
    """Runs an artifact's ONNX file; needs neither PyTorch nor the onnx package."""

    concurrent: ClassVar[bool] = True  # `InferenceSession.run` is for any number of threads, says ONNX Runtime

    def __init__(self, artifact: StoredArtifact, threads: int) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        self._path = artifact.entry
        self._module_paths = artifact.achieved.module_paths
        check_external_data(artifact)
        self._exact = needs_exact(this_host())
        self._runtime = _opened(artifact, threads, exact=self._exact)
        self._names = [spec.name for spec in self.outputs]

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._runtime.run(self._names, feeds), strict=True))

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        """See `Session.op_times`; a second session counts, so that ordinary runs do not pay for it."""
        paths = self._module_paths
        return op_times(self._path, feeds, threads=self.threads, runs=runs, module_paths=paths, exact=self._exact)

    def _close(self) -> None:
        del self._runtime


def _opened(artifact: StoredArtifact, threads: int, *, exact: bool) -> onnxruntime.InferenceSession:
    """Open the file.

    Raises:
        DeviceError: this CPU needs the exact form, and an older version wrote a file that cannot be opened in it.
    """
    try:
        return inference_session(artifact.entry, threads=threads, exact=exact)
    except ConversionError as error:
        if not exact or artifact.manifest.requirements is not None:
            raise
        version = artifact.manifest.deploykit_version
        raise DeviceError(
            f"{artifact.path.name} was exported by an older deploykit ({version}): its 8-bit weights would saturate on"
            " this CPU, which has no VNNI",
            hint=f'export it again, for target="{artifact.target}" or, faster here, target="x86-cpu-avx2"',
        ) from error
