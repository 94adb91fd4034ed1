"""`Session`: an opened artifact (or reference model) that maps named arrays to named arrays.

The public methods check; a backend writes `_run` and `_close`. Checks are a few dictionary look-ups, so that a
session adds microseconds, not milliseconds, to the runtime's own call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from deploykit.errors import UsageError
from deploykit.tensors import Feeds, TensorSpec


@dataclass(frozen=True)
class OpTime:
    """Mean time of one operator per run, where the runtime can tell.

    Attributes:
        name: node name in the deployed graph.
        op: operator type.
        module_path: the PyTorch module it came from, "" where unknown.
        mean_us: microseconds per run.
    """

    name: str
    op: str
    module_path: str
    mean_us: float


class Session(ABC):
    """Base of all sessions; a context manager.

    Args:
        inputs: specs of the inputs; `run` wants exactly these names.
        outputs: specs of the outputs, in order.
        threads: how many threads the runtime may use, stated in every profile.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, threads: int) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.threads = threads
        self._expected = {spec.name: (spec, np.dtype(spec.dtype)) for spec in self.inputs}
        self._closed = False

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: one array per input, by name; dtype and shape as in `inputs`.
        Returns:
            One array per output, by name; the caller owns them.
        Raises:
            UsageError: the session is closed, or a name, dtype or shape is off; the message says what was expected.
        """
        if self._closed:
            raise UsageError("this session is closed", hint="open it again with artifact.open()")
        if not isinstance(feeds, Mapping):
            raise UsageError(f"run takes a dict of arrays by name, not {type(feeds).__name__}", hint=self._example())
        if feeds.keys() != self._expected.keys():
            raise UsageError(self._names_message(feeds))
        for name, (spec, dtype) in self._expected.items():
            array = feeds[name]
            if not isinstance(array, np.ndarray) or array.dtype != dtype or not spec.accepts(array.shape):
                raise UsageError(_array_message(spec, array))
        return self._run(feeds)

    def op_times(self, feeds: Feeds, *, runs: int) -> tuple[OpTime, ...]:
        """Mean time per operator over `runs` runs, slowest first; empty where the runtime cannot tell."""
        return ()

    def close(self) -> None:
        """Free the runtime's resources; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]: ...

    def _close(self) -> None:
        """Free resources; override where the runtime holds any."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _example(self) -> str:
        return f"session.run({{{', '.join(f'{spec.name!r}: ndarray' for spec in self.inputs)}}})"

    def _names_message(self, feeds: Feeds) -> str:
        missing = sorted(self._expected.keys() - feeds.keys())
        unknown = sorted(feeds.keys() - self._expected.keys())
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


def _array_message(spec: TensorSpec, array: object) -> str:
    if not isinstance(array, np.ndarray):
        return f"input {spec.name!r} is {type(array).__name__}, not a NumPy array; expected {spec}"
    got = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    if array.dtype != np.dtype(spec.dtype):
        return f"input {spec.name!r} has dtype {array.dtype}; expected {spec}, got {got} (convert with .astype)"
    return f"input {spec.name!r} has the wrong shape: expected {spec}, got {got}"
