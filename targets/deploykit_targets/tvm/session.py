"""A compiled library opened in this process, and the program that boards and emulators start in its place."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import numpy as np

from deploykit.contract.errors import ArtifactError, DeviceError
from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import Feeds
from deploykit.places.frames import VERSION
from deploykit.places.peer import BoardProgram
from deploykit_targets.tvm.build import CONSTANTS, PROGRAM, RUNNER, read_program, recorded
from deploykit_targets.tvm.native import Model
from deploykit_targets.tvm.runtime.table import port_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.artifact.store import StoredArtifact
    from deploykit_targets.tvm.program import Step


def is_native(artifact: StoredArtifact) -> bool:
    """Whether the artifact is code for this machine's architecture."""
    return bool(recorded(artifact).arch == platform.machine())


def program_of(artifact: StoredArtifact) -> BoardProgram | None:
    """The program of an artifact, for boards and emulators; None where it has none: then deploykit opens the library.

    Raises:
        ArtifactError: it is damaged.
    """
    library = recorded(artifact)
    if RUNNER not in library.runtime_files:
        return None
    check_sizes(artifact)
    steps = read_program(artifact.path / PROGRAM)
    sizes = [sum(map(port_bytes, ports)) for ports in (steps.inputs, steps.outputs)]
    return BoardProgram(
        files=(RUNNER, CONSTANTS),
        arguments=(CONSTANTS, "{threads}"),
        facts={"input_bytes": sizes[0], "output_bytes": sizes[1], "steps": len(steps.steps)},
        op_times=lambda step_us: op_times_of(steps.steps, step_us, artifact.achieved.module_paths),
    )


def is_outdated(artifact: StoredArtifact) -> bool:
    """Whether the artifact's program is older than the session protocol."""
    library = recorded(artifact)
    return RUNNER in library.runtime_files and library.protocol != VERSION


class NativeSession(Session):
    """Runs `model.so` in this process.

    A model has one arena. Sessions do not share anything but the pages of the constants.

    Args:
        artifact: the artifact of the `tvm` toolchain.
        threads: the number of threads of this session's own pool, the caller's included.
        variant: the instruction set whose kernels run, where there are several; "" for the best that the CPU has.

    Attributes:
        variant: the variant whose kernels run; "" where there is one.

    Raises:
        DeviceError: another architecture, or the CPU lacks an instruction set that the kernels use.
        ArtifactError: the library cannot be loaded, or does not fit its constants.
    """

    def __init__(self, artifact: StoredArtifact, threads: int, *, variant: str = "") -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        arch = recorded(artifact).arch
        if arch != platform.machine():
            raise DeviceError(f"{artifact.path.name} is code for {arch}; this machine is {platform.machine()}")
        self._module_paths = artifact.achieved.module_paths
        check_sizes(artifact)
        variants = [variant.isa for variant in recorded(artifact).variants]
        try:
            self._model = Model(artifact.path, threads, variants, variant=variant)
        except BaseException:
            self._turns.closed = True  # there is nothing to free
            raise
        self.variant = self._model.variant

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        steps = self._model.program.steps
        spent = np.zeros((runs, max(1, len(steps))))
        for once in spent:
            self._model.run(feeds, once)
        return op_times_of(steps, np.median(spent, axis=0), self._module_paths)

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._model.run(feeds)

    def _close(self) -> None:
        self._model.close()


def op_times_of(
    steps: Sequence[Step], step_us: Sequence[float] | np.ndarray, module_paths: dict[str, str]
) -> tuple[OpTime, ...]:
    """Time per node of the captured graph, slowest first: a layer's steps (padding, packing, product) are summed.

    Args:
        step_us: microseconds of every step.
        module_paths: the module paths, by node.
    """
    nodes: dict[str, tuple[str, float]] = {}
    for step, own in zip(steps, step_us, strict=False):
        kind, before = nodes.get(step.node, (step.kind, 0.0))
        nodes[step.node] = (step.kind if step.macs else kind, before + float(own))
    times = (OpTime(node, kind, module_paths.get(node, ""), spent) for node, (kind, spent) in nodes.items())
    return tuple(sorted(times, key=lambda time: -time.median_us))


def check_sizes(artifact: StoredArtifact) -> None:
    """Refuse files that were cut since the artifact was loaded: the system's loader would die of one.

    Raises:
        ArtifactError: names the file.
    """
    for name, size in recorded(artifact).runtime_files.items():
        path = artifact.path / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise ArtifactError(
                f"{name} of {artifact.path.name} "
                + ("is missing" if found is None else f"has {found} bytes, not {size}"),
                hint="copy the artifact again, or export again",
            )
