"""`Session`: an opened artifact (or reference model) that maps named arrays to named arrays.

The public methods check; a backend writes `_run`, `_op_times` and `_close`. Checks are a few dictionary look-ups, so
that a session adds microseconds, not milliseconds, to the runtime's own call.

Sessions are for any number of threads, whatever the runtime: see `turns.py`. What a backend gets are plain arrays: of
exactly the wanted dtype, C-contiguous, aligned, writable, each read once from what the caller gave.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np

from deploykit.contract.errors import DeploykitError, DeviceError, UsageError
from deploykit.contract.tensors import Feeds, TensorSpec
from deploykit.contract.turns import OneAtATime, Together, Turns

Array = np.ndarray[Any, Any]
_NAMES_TOLD = 8
_FAILED = (
    "see that indices, lengths and masks are in the range that the model takes; `deploykit verify` runs its own data"
)


@dataclass(frozen=True)
class OpTime:
    """Median time of one operator over some runs, where the runtime can tell.

    Attributes:
        name: node name in the deployed graph.
        op: operator type.
        module_path: the PyTorch module it came from, "" where unknown.
        median_us: microseconds per run; an estimate or the mean where the runtime tells no single runs.
    """

    name: str
    op: str
    module_path: str
    median_us: float


class Session(ABC):
    """Base of all sessions; a context manager.

    Any number of threads may call `run` and `op_times`, and one may call `close` beside them: it waits for the calls
    that have begun, and later ones raise. A session belongs to the process that opened it: forked copies refuse.

    Args:
        inputs: specs of the inputs; `run` wants exactly these names.
        outputs: specs of the outputs, in order.
        threads: how many threads the runtime may use, stated in every profile.

    Attributes:
        concurrent: whether calls of `_run` may be beside each other; where not, they wait for each other.
    """

    concurrent: ClassVar[bool] = False

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, threads: int) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.threads = threads
        self._expected = {spec.name: (spec, np.dtype(spec.dtype)) for spec in self.inputs}
        self._turns: Turns = Together() if self.concurrent else OneAtATime()

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: one array per input, by name; dtype and shape as in `inputs`.
        Returns:
            One array per output, by name; the caller owns them.
        Raises:
            UsageError: the session is closed, or a name, dtype or shape is off; the message says what was expected.
            DeviceError: the runtime failed, as most do on an index that is out of range.
        """
        if self._turns.closed:
            self._turns.check()
        arrays = self._checked(feeds)
        with self._turns:
            try:
                return self._run(arrays)
            except DeploykitError:
                raise
            except Exception as error:  # runtimes have exceptions of their own, without a common base
                said = str(error).strip() or type(error).__name__
                raise DeviceError(f"the runtime failed on these inputs: {said}", hint=_FAILED) from error

    def op_times(self, feeds: Feeds, *, runs: int) -> tuple[OpTime, ...]:
        """Median time per operator over `runs` runs, slowest first; empty where the runtime cannot tell.

        Raises:
            UsageError: as `run`, or `runs` is below 1.
        """
        if not isinstance(runs, int) or runs < 1:
            raise UsageError(f"runs must be a whole number from 1, not {runs!r}")
        if self._turns.closed:
            self._turns.check()
        arrays = self._checked(feeds)
        with self._turns:
            return self._op_times(arrays, runs)

    def times_ms(self, feeds: Feeds, *, runs: int) -> list[float]:
        """Milliseconds of each of `runs` runs, back to back, on the clock of the machine that runs them.

        Raises:
            UsageError: as `run`.
        """
        found = []
        for _ in range(runs):
            start = time.perf_counter()
            self.run(feeds)
            found.append((time.perf_counter() - start) * 1e3)
        return found

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most that the artifact took of its own process's memory so far; None where this is that process."""
        return None

    def close(self) -> None:
        """Free the runtime's resources once the calls that run have ended; closing twice is fine."""
        self._turns.close(self._close)

    @abstractmethod
    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]: ...

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        """Override where the runtime can tell."""
        return ()

    def _close(self) -> None:
        """Free resources; override where the runtime holds any. Called once, while nothing runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, feeds: Feeds) -> dict[str, Array]:
        """What was given as plain arrays by name, in the order of the inputs."""
        given = feeds if type(feeds) is dict else self._read(feeds)
        if given.keys() != self._expected.keys():
            raise UsageError(self._names_message(given))
        arrays = {}
        for name, (spec, dtype) in self._expected.items():
            array = given[name]
            if type(array) is not np.ndarray:
                array = _plain(spec, array)
            if array.dtype != dtype or not spec.accepts(array.shape):
                raise UsageError(_array_message(spec, array))
            arrays[name] = array if array.flags.carray else np.array(array, dtype, order="C")
        return arrays

    def _read(self, feeds: object) -> dict[str, Any]:
        """Any mapping as a dict, each value read once; of one that is longer than it should be, only the beginning."""
        if not isinstance(feeds, Mapping):
            raise UsageError(f"run takes a dict of arrays by name, not {type(feeds).__name__}", hint=self._example())
        try:
            return {name: feeds[name] for name in islice(feeds, len(self._expected) + _NAMES_TOLD)}
        except Exception as error:  # a caller's class may raise anything
            message = f"the given {type(feeds).__name__} cannot be read: {type(error).__name__}: {error}"
            raise UsageError(message, hint=self._example()) from error

    def _example(self) -> str:
        return f"session.run({{{', '.join(f'{spec.name!r}: ndarray' for spec in self.inputs)}}})"

    def _names_message(self, feeds: Mapping[Any, Any]) -> str:
        missing = sorted(self._expected.keys() - feeds.keys())
        unknown = sorted(feeds.keys() - self._expected.keys(), key=repr)[:_NAMES_TOLD]
        parts = [f"missing {missing}" if missing else "", f"unknown {unknown}" if unknown else ""]
        return f"wrong input names: {', '.join(filter(None, parts))}; the model takes {[str(s) for s in self.inputs]}"


class FunctionSession(Session):
    """A session over any Python callable: the PyTorch reference and the simulated graph are run through it."""

    def __init__(
        self,
        function: Callable[[Feeds], Mapping[str, np.ndarray]],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, threads=threads)
        self._function = function

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return dict(self._function(feeds))


def _plain(spec: TensorSpec, array: object) -> Array:
    """An array of a subclass (a memory map, say) as the plain array that it is.

    Raises:
        UsageError: it is none, or its class gives the values another meaning.
    """
    if not isinstance(array, np.ndarray):
        raise UsageError(_array_message(spec, array))
    if isinstance(array, np.ma.MaskedArray):
        raise UsageError(f"input {spec.name!r} is a masked array; a model knows no mask", hint="pass array.filled(0)")
    return np.ndarray.view(array, np.ndarray)


def _array_message(spec: TensorSpec, array: object) -> str:
    if not isinstance(array, np.ndarray):
        return f"input {spec.name!r} is {type(array).__name__}, not a NumPy array; expected {spec}"
    got = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    if array.dtype != np.dtype(spec.dtype):
        return f"input {spec.name!r} has dtype {array.dtype}; expected {spec}, got {got} (convert with .astype)"
    return f"input {spec.name!r} has the wrong shape: expected {spec}, got {got}"
