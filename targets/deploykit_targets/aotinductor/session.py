"""A `.pt2` package opened with PyTorch's loader, on the CPU or on the GPU it was compiled for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit._optional import require
from deploykit.errors import DeviceError
from deploykit.session import Session
from deploykit.tensors import Feeds
from deploykit.turns import threads_here

if TYPE_CHECKING:
    from deploykit.artifact import Artifact


class PackageSession(Session):
    """Runs an artifact's package.

    Args:
        artifact: with `model.pt2`.
        threads: for the whole process: PyTorch has one pool.

    Raises:
        MissingDependencyError: PyTorch is not installed.
        DeviceError: the GPU is not here, or the package's native code cannot be loaded.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        threads = threads_here(threads, "torch")
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        self._torch: Any = require("torch", extra="aotinductor", purpose="run AOTInductor packages")
        self._place = artifact.manifest.metadata["torch_device"]
        if self._place == "cuda" and not self._torch.cuda.is_available():
            raise DeviceError(f"{artifact.path.name} needs {artifact.manifest.device}, and there is no GPU here")
        self._torch.set_num_threads(threads)
        from torch._inductor import aoti_load_package

        try:
            self._package = aoti_load_package(str(artifact.entry))
        except RuntimeError as error:
            compiled = artifact.manifest.metadata["compiled_for"]
            raise DeviceError(
                f"{artifact.path.name} was compiled for {compiled}: {error}", hint="export it here"
            ) from error

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        torch = self._torch
        with torch.inference_mode():
            arguments = [torch.from_numpy(feeds[spec.name]).to(self._place) for spec in self.inputs]
            results = self._package(*arguments)
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        return {spec.name: result.cpu().numpy() for spec, result in zip(self.outputs, results, strict=True)}

    def _close(self) -> None:
        del self._package
