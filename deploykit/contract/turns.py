"""Who is inside a session: calls of several threads, `close` beside them, calls inside calls, and forked copies.

A session keeps one of these two, and everything that touches its runtime happens inside it:

- `OneAtATime`: calls wait for each other. For runtimes whose handle holds the inputs and outputs of one run.
- `Together`: calls run beside each other. For runtimes that say that their handle may be called by several threads.

In both, `close` refuses later calls first, waits for those that are inside, and only then frees the runtime.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType

from deploykit.contract.errors import UsageError


class Turns(ABC):
    """A context manager around each use of a runtime.

    Attributes:
        closed: no call may begin any more.
    """

    def __init__(self) -> None:
        self.closed = False
        self._forked = False
        self._freed = False
        self._later: Callable[[], None] | None = None
        _ALIVE.add(self)

    @abstractmethod
    def __enter__(self) -> None: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def close(self, free: Callable[[], None]) -> None:
        """Refuse later calls, wait for those of other threads, and free the runtime once.

        From inside a call of the same thread (a signal's handler, say) the runtime is freed when that call ends. In a
        forked copy of the process nothing is freed: the runtime is the other process's.
        """
        self.closed = True
        if not self._forked:
            self._close(free)

    def check(self) -> None:
        """Raise where no call may begin.

        Raises:
            UsageError: closed, or in a forked copy of the process that opened it: a runtime's threads are not copied,
                and waiting for them would never end.
        """
        if self._forked:
            raise UsageError(
                "this session was opened by another process, of which this one is a forked copy",
                hint="open the artifact in the process that runs it, or start processes with the method `spawn`",
            )
        if self.closed:
            raise UsageError("this session is closed", hint="open it again with artifact.open()")

    @abstractmethod
    def _close(self, free: Callable[[], None]) -> None: ...

    def _free(self, free: Callable[[], None]) -> None:
        if not self._freed:
            self._freed = True
            free()


class OneAtATime(Turns):
    """Calls wait for each other; one inside another of the same thread is refused, as it would use its memory."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._inside = False

    def __enter__(self) -> None:
        """Wait for the turn."""
        if self.closed:  # before the lock, which a forked copy may have inherited locked
            self.check()
        self._lock.acquire()
        if self.closed or self._inside:
            inside = self._inside
            self._lock.release()
            self.check()
            if inside:
                message = "this session is already running on this thread; a run cannot begin inside another"
                raise UsageError(message, hint="open the artifact once more for that")
        self._inside = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the next one in."""
        self._inside = False
        try:
            if self._later is not None:
                self._free(self._later)
        finally:
            self._lock.release()

    def _close(self, free: Callable[[], None]) -> None:
        with self._lock:
            if self._inside:
                self._later = free
            else:
                self._free(free)


class Together(Turns):
    """Calls run beside each other.

    A call enters its name before it looks whether the session is closed, and `close` says so before it looks who is
    inside: one of them always sees the other, and calls need no lock.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inside: list[int] = []
        self._left = threading.Condition(threading.RLock())

    def __enter__(self) -> None:
        """Take part."""
        self._inside.append(threading.get_ident())
        if self.closed:
            self.__exit__(None, None, None)
            self.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; the last call frees what its own thread closed meanwhile."""
        self._inside.remove(threading.get_ident())
        if self.closed and not self._forked:
            self._tell()

    def _tell(self) -> None:
        with self._left:
            self._left.notify_all()
            if self._later is not None and not self._inside:
                self._free(self._later)

    def _close(self, free: Callable[[], None]) -> None:
        own = threading.get_ident()
        with self._left:
            self._left.wait_for(lambda: all(each == own for each in self._inside))
            if self._inside:
                self._later = free
            else:
                self._free(free)


def threads_here(wanted: int, runtime: str) -> int:
    """How many threads a runtime with one pool for the process may use: 1 in a forked copy of a process that had it.

    The pool's threads are not copied, and OpenMP would wait for them for ever.

    Args:
        wanted: threads.
        runtime: its module, such as `torch`.
    """
    return 1 if runtime in _inherited else wanted


_inherited: set[str] = set()
_ALIVE: weakref.WeakSet[Turns] = weakref.WeakSet()


def _forked() -> None:
    for turns in list(_ALIVE):
        turns.closed = turns._forked = True
    _inherited.update(sys.modules)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
