"""A compiled library opened in this process, and the program that boards and emulators start in its place."""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.contract.errors import ArtifactError, DeviceError
from deploykit.contract.session import OpTime, Session
from deploykit.contract.tensors import Feeds
from deploykit.places.frames import VERSION
from deploykit.places.peer import Program
from deploykit_targets.tvm.build import CONSTANTS, LIBRARY, PROGRAM, RUNNER, read_program, recorded
from deploykit_targets.tvm.program import Port
from deploykit_targets.tvm.runtime.table import port_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.artifact.store import StoredArtifact
    from deploykit_targets.tvm.program import Step

_MESSAGE_BYTES = 768


def is_native(artifact: StoredArtifact) -> bool:
    """Whether the artifact is code for this machine's architecture."""
    return bool(recorded(artifact).arch == platform.machine())


def program_of(artifact: StoredArtifact) -> Program | None:
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
    return Program(
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
        artifact: of the `tvm` toolchain.
        threads: of this session's own pool, the caller's included.

    Raises:
        DeviceError: another architecture, or the CPU lacks an instruction set that the kernels use.
        ArtifactError: the library cannot be loaded, or does not fit its constants.
    """

    def __init__(self, artifact: StoredArtifact, threads: int) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=threads)
        arch = recorded(artifact).arch
        if arch != platform.machine():
            raise DeviceError(f"{artifact.path.name} is code for {arch}; this machine is {platform.machine()}")
        self._program = read_program(artifact.path / PROGRAM)
        self._module_paths = artifact.achieved.module_paths
        self._library = _load(artifact)
        error = ctypes.create_string_buffer(_MESSAGE_BYTES)
        constants = str(artifact.path / CONSTANTS).encode()
        self._model = self._library.deploykit_create(constants, threads, error, len(error))
        if not self._model:
            self._turns.closed = True  # there is nothing to free
            raise DeviceError(f"{artifact.path.name}: {error.value.decode(errors='replace')}")
        ports = self._program
        self._feeding = [(p.name, self._view(self._library.deploykit_input, i, p)) for i, p in enumerate(ports.inputs)]
        self._reading = [
            (p.name, self._view(self._library.deploykit_output, i, p)) for i, p in enumerate(ports.outputs)
        ]

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        spent = np.zeros((runs, max(1, len(self._program.steps))))
        for once in spent:
            self._execute(feeds, once)
        return op_times_of(self._program.steps, np.median(spent, axis=0), self._module_paths)

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._execute(feeds, None)

    def _execute(self, feeds: Feeds, step_us: np.ndarray | None) -> dict[str, np.ndarray]:
        for name, memory in self._feeding:
            np.copyto(memory, feeds[name])
        if self._library.deploykit_run(self._model, None if step_us is None else step_us.ctypes.data):
            words = self._library.deploykit_error(self._model).decode(errors="replace")
            raise DeviceError(f"the compiled model failed: {words}")
        return {name: memory.copy() for name, memory in self._reading}

    def _view(self, address: Any, index: int, port: Port) -> np.ndarray:
        """The model's own memory of an input or output as an array; valid until the session is closed."""
        memory: Any = (ctypes.c_char * port_bytes(port)).from_address(address(self._model, index))
        view: np.ndarray = np.frombuffer(memory, port.dtype).reshape(port.shape)
        return view

    def _close(self) -> None:
        self._feeding, self._reading = [], []
        self._library.deploykit_destroy(self._model)


def op_times_of(
    steps: Sequence[Step], step_us: Sequence[float] | np.ndarray, module_paths: dict[str, str]
) -> tuple[OpTime, ...]:
    """Time per node of the captured graph, slowest first: a layer's steps (padding, packing, product) are summed.

    Args:
        step_us: microseconds of every step.
        module_paths: by node.
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


def _load(artifact: StoredArtifact) -> ctypes.CDLL:
    check_sizes(artifact)
    try:
        library = ctypes.CDLL(str(artifact.path / LIBRARY))
        library.deploykit_create.restype = ctypes.c_void_p
    except (OSError, AttributeError) as error:
        if "GLIBC_" in str(error):  # what the loader says of a system older than the one that linked it
            message = f"the C library of this system is too old for {LIBRARY}: {error}"
            raise DeviceError(
                message, hint="run it from another machine with --board: its program brings its own"
            ) from error
        raise ArtifactError(f"{LIBRARY} cannot be loaded: {error}", hint="export the model again") from error
    library.deploykit_create.argtypes = [ctypes.c_char_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_size_t]
    for function in (library.deploykit_input, library.deploykit_output):
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_void_p
    library.deploykit_run.argtypes, library.deploykit_run.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int32
    library.deploykit_error.argtypes, library.deploykit_error.restype = [ctypes.c_void_p], ctypes.c_char_p
    library.deploykit_destroy.argtypes, library.deploykit_destroy.restype = [ctypes.c_void_p], None
    return library
