"""`runtime="compile"`: the exported program itself is the payload, and PyTorch compiles it when it is opened.

For machines whose PyTorch cannot load AOTInductor's native packages. On a GPU with fixed shapes the compiled program is
recorded as one CUDA graph, whose replay from any thread launches all kernels at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.contract.errors import DeviceError
from deploykit.contract.quiet import kept_quiet
from deploykit.contract.tensors import Feeds
from deploykit_targets.aotinductor.session import TorchSession

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact

PROGRAM = "program.pt2"
_WARM_UPS = 3


class ProgramSession(TorchSession):
    """Runs an artifact's program through `torch.compile`.

    Args:
        artifact: the artifact, with `program.pt2`.
        threads: for the whole process: PyTorch has one pool.

    Raises:
        MissingDependencyError: PyTorch is not installed.
        DeviceError: the GPU is not here, or the program cannot be compiled here.
    """

    def __init__(self, artifact: StoredArtifact, threads: int) -> None:
        super().__init__(artifact, threads, "run exported programs")
        self._graph: Any = None
        self._static: list[Any] = []
        self._results: list[Any] = []
        try:
            with kept_quiet([]):
                self._load(str(artifact.entry))
        except Exception as error:  # what PyTorch raises over a program of another version has no common base
            hint = "export it with this PyTorch"
            raise DeviceError(f"PyTorch cannot load {artifact.path.name}: {error}", hint=hint) from error

    def _load(self, path: str) -> None:
        """Compile for fixed shapes at once; dynamic ones are compiled in the first run."""
        torch = self._torch
        self._function = torch.compile(torch.export.load(path).module())
        if any(isinstance(size, str) for spec in self.inputs for size in spec.shape):
            return
        self._static = [
            torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=self._place) for spec in self.inputs
        ]
        if self._place == "cuda":
            self._record()
        else:
            with torch.inference_mode():
                self._function(*self._static)

    def _record(self) -> None:
        """Run a few times beside the default stream, as capturing wants it, then record."""
        torch = self._torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._function(*self._static)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._results = self._listed(self._function(*self._static))

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        torch = self._torch
        arguments = [torch.from_numpy(feeds[spec.name]) for spec in self.inputs]
        with torch.inference_mode():
            results = self.on_device([argument.to(self._place, non_blocking=True) for argument in arguments])
        return {spec.name: result.cpu().numpy().copy() for spec, result in zip(self.outputs, results, strict=True)}

    def on_device(self, arguments: list[Any]) -> list[Any]:
        """Run on tensors that are on the device already; the results are overwritten by the next run."""
        if self._graph is None:
            return self._listed(self._function(*arguments))
        for static, argument in zip(self._static, arguments, strict=True):
            static.copy_(argument)
        self._graph.replay()
        return self._results

    def _close(self) -> None:
        self._graph, self._function = None, None
        self._static, self._results = [], []
