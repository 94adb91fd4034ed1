"""A `.pt2` package opened with PyTorch's loader, on the CPU or on the GPU it was compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploykit.contract.errors import DeviceError
from deploykit.contract.optional import require
from deploykit.contract.session import Session
from deploykit.contract.tensors import Feeds
from deploykit.contract.turns import threads_here

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact


@dataclass(frozen=True)
class Compiled:
    """What is read of the metadata."""

    torch_device: Literal["cpu", "cuda"]
    compiled_for: str


class TorchSession(Session):
    """Has PyTorch, and the device that the artifact computes on; what computes is the subclass's.

    Args:
        artifact: the artifact of this toolchain.
        threads: for the whole process: PyTorch has one pool.
        purpose: what PyTorch is needed for, where it is missing.

    Raises:
        MissingDependencyError: PyTorch is not installed.
        DeviceError: the GPU is not here.
    """

    def __init__(self, artifact: StoredArtifact, threads: int, purpose: str) -> None:
        threads = threads_here(threads, "torch")
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        self._torch: Any = require("torch", extra="aotinductor", purpose=purpose)
        self._place = artifact.manifest.recorded(Compiled).torch_device
        if self._place == "cuda" and not self._torch.cuda.is_available():
            raise DeviceError(f"{artifact.path.name} needs {artifact.manifest.device}, and there is no GPU here")
        self._torch.set_num_threads(threads)

    def _listed(self, results: Any) -> list[Any]:
        """Results as a list, which PyTorch gives of several only."""
        return [results] if isinstance(results, self._torch.Tensor) else list(results)


class PackageSession(TorchSession):
    """Runs an artifact's package.

    Args:
        artifact: the artifact, with `model.pt2`.
        threads: for the whole process: PyTorch has one pool.

    Raises:
        MissingDependencyError: PyTorch is not installed.
        DeviceError: the GPU is not here, or the package's native code cannot be loaded.
    """

    def __init__(self, artifact: StoredArtifact, threads: int) -> None:
        super().__init__(artifact, threads, "run AOTInductor packages")
        from torch._inductor import aoti_load_package

        try:
            self._package = aoti_load_package(str(artifact.entry))
        except RuntimeError as error:
            compiled = artifact.manifest.recorded(Compiled).compiled_for
            raise DeviceError(
                f"{artifact.path.name} was compiled for {compiled}: {error}", hint="export it here"
            ) from error

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        torch = self._torch
        with torch.inference_mode():
            arguments = [torch.from_numpy(feeds[spec.name]).to(self._place) for spec in self.inputs]
            results = self._listed(self._package(*arguments))
        return {spec.name: result.cpu().numpy() for spec, result in zip(self.outputs, results, strict=True)}

    def _close(self) -> None:
        del self._package
