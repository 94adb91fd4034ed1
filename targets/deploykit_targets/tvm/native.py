"""`Model`: the compiled library of a folder, opened in this process; `session.py` has the session over it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.contract.errors import ArtifactError, DeviceError
from deploykit.contract.tensors import Feeds
from deploykit_targets.tvm.build import CONSTANTS, LIBRARY, PROGRAM, program_file, read_program
from deploykit_targets.tvm.program import Port
from deploykit_targets.tvm.runtime.table import port_bytes

_MESSAGE_BYTES = 768


class Model:
    """One opened library with its memory and threads; one caller at a time.

    Args:
        folder: the folder, with the files of `build.link_library`.
        threads: the number of threads of its own pool, the caller's included.
        variants: the variants of the library, best first; none where it has one.
        variant: the variant of these, the one to take; "" for the best that the CPU has.

    Attributes:
        variant: the variant that was taken; "" where there is one.
        program: its own.

    Raises:
        DeviceError: the CPU lacks an instruction set that the kernels use.
        ArtifactError: the library cannot be loaded, or does not fit its constants.
    """

    def __init__(self, folder: Path, threads: int, variants: Sequence[str] = (), *, variant: str = "") -> None:
        self._library = _load(folder / LIBRARY)
        self._model = self._create(folder, threads, variant)
        self.variant = self._library.deploykit_variant(self._model).decode() if variants else ""
        own = self.variant if self.variant in variants[:-1] else ""
        self.program = read_program(folder / (program_file(own) if own else PROGRAM))
        self._feeding = [self._view("deploykit_input", i, port) for i, port in enumerate(self.program.inputs)]
        self._reading = [self._view("deploykit_output", i, port) for i, port in enumerate(self.program.outputs)]

    def run(self, feeds: Feeds, step_us: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            step_us: takes the microseconds of every step; float64.
        """
        for name, memory in self._feeding:
            np.copyto(memory, feeds[name])
        if self._library.deploykit_run(self._model, None if step_us is None else step_us.ctypes.data):
            words = self._library.deploykit_error(self._model).decode(errors="replace")
            raise DeviceError(f"the compiled model failed: {words}")
        return {name: memory.copy() for name, memory in self._reading}

    def close(self) -> None:
        """Free it."""
        self._feeding, self._reading = [], []
        self._library.deploykit_destroy(self._model)

    def _create(self, folder: Path, threads: int, variant: str) -> Any:
        error = ctypes.create_string_buffer(_MESSAGE_BYTES)
        rest = (str(folder / CONSTANTS).encode(), threads, error, len(error))
        if variant:
            model = self._library.deploykit_create_variant(variant.encode(), *rest)
        else:
            model = self._library.deploykit_create(*rest)
        if not model:
            raise DeviceError(f"{folder.name}: {error.value.decode(errors='replace')}")
        return model

    def _view(self, function: str, index: int, port: Port) -> tuple[str, np.ndarray]:
        """The model's own memory of an input or output as an array; valid until it is closed."""
        address = getattr(self._library, function)(self._model, index)
        memory: Any = (ctypes.c_char * port_bytes(port)).from_address(address)
        view: np.ndarray = np.frombuffer(memory, port.dtype).reshape(port.shape)
        return port.name, view


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        library.deploykit_create.restype = ctypes.c_void_p
    except (OSError, AttributeError) as error:
        if "GLIBC_" in str(error):  # what the loader says of a system older than the one that linked it
            message = f"the C library of this system is too old for {path.name}: {error}"
            raise DeviceError(
                message, hint="run it from another machine with --board: its program brings its own"
            ) from error
        raise ArtifactError(f"{path.name} cannot be loaded: {error}", hint="export the model again") from error
    rest: list[Any] = [ctypes.c_char_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_size_t]
    library.deploykit_create.argtypes = rest
    for function in (library.deploykit_input, library.deploykit_output):
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_void_p
    library.deploykit_run.argtypes, library.deploykit_run.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int32
    library.deploykit_error.argtypes, library.deploykit_error.restype = [ctypes.c_void_p], ctypes.c_char_p
    library.deploykit_destroy.argtypes, library.deploykit_destroy.restype = [ctypes.c_void_p], None
    if hasattr(library, "deploykit_variant"):  # older libraries have one program
        library.deploykit_variant.argtypes, library.deploykit_variant.restype = [ctypes.c_void_p], ctypes.c_char_p
        create = library.deploykit_create_variant
        create.argtypes, create.restype = [ctypes.c_char_p, *rest], ctypes.c_void_p
    return library
