"""One progress display for the whole pipeline: a line a step with its seconds, on a terminal and in a notebook.

Elsewhere nothing is printed: every step is logged (`deploykit`, INFO when it ends, DEBUG when it begins), and a
function given as `progress=` is told each event. Lines go to standard error, so that results stay alone on standard
output; in a notebook, to the cell.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from deploykit.contract.progress import Advance, Event, Progress, State

_LOG = logging.getLogger("deploykit")
_LEVELS = {"begins": logging.DEBUG, "advances": logging.DEBUG, "ends": logging.INFO, "fails": logging.INFO}


class Steps:
    """Shows the running step with a spinner and its seconds, then leaves a line; remembers how long each took.

    Args:
        enabled: False shows nothing; a function is told each event instead. What that raises ends the work.
    Attributes:
        seconds: wall time by step name, in order.
    """

    def __init__(self, *, enabled: Progress = True) -> None:
        self._listener = enabled if callable(enabled) else None
        self._on_terminal = enabled is True and sys.stderr is not None and sys.stderr.isatty()
        self._in_notebook = enabled is True and not self._on_terminal and in_notebook()
        self._began = time.perf_counter()
        self._name = ""
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, *, spinner: bool = True) -> Iterator[None]:
        """Run one step; `spinner=False` where the step draws a bar of its own."""
        self._name, self._began = name, time.perf_counter()
        self._tell("begins")
        try:
            with self._display(name) if spinner and self._on_terminal else contextlib.nullcontext():
                yield
        except BaseException:
            self._tell("fails")
            raise
        self.seconds[name] = self._elapsed
        self._tell("ends")

    @property
    def counted(self) -> bool | Advance:
        """What a step that counts is given: whether it draws its own bar, or who is told how far it is."""
        return self._advance if self._listener is not None else self._on_terminal

    @property
    def _elapsed(self) -> float:
        return time.perf_counter() - self._began

    def _advance(self, done: int, total: int | None) -> None:
        self._tell("advances", done, total)

    def _tell(self, state: State, done: int | None = None, total: int | None = None) -> None:
        event = Event(self._name, state, self._elapsed, done, total)
        _LOG.log(_LEVELS[state], "%s", event)
        if self._listener is not None:
            self._listener(event)
        if state not in ("ends", "fails"):
            return
        if self._on_terminal:
            from rich.console import Console

            Console(stderr=True, highlight=False).print(f"{event}", style="dim" if state == "ends" else "red")
        elif self._in_notebook:
            print(event, flush=True)

    @contextlib.contextmanager
    def _display(self, name: str) -> Iterator[None]:
        from rich.console import Console
        from rich.progress import Progress as Bars
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            bars.add_task(name, total=None)
            yield


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, whose cells show what is printed; nothing is imported to ask."""
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get() if callable(get) else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class Lines:
    """A listener that writes lines, a terminal or not: each step with its seconds, and that one still runs.

    For logs of CI, pipes, and programs that must not be silent for long. Close to none of the work's time goes into it.

    Args:
        prefix: begins each line.
        stream: where to; standard error if not given.
        every_s: seconds after which a step that runs says so, again and again.
    """

    def __init__(self, prefix: str = "", *, stream: TextIO | None = None, every_s: float = 2.0) -> None:
        self._prefix, self._stream, self._every_s = prefix, stream, every_s
        self._over = threading.Event()
        self._counted: tuple[int | None, int | None] = (None, None)

    def __call__(self, event: Event) -> None:
        """Take an event; what is counted is told with the next line of the step."""
        if event.state == "advances":
            self._counted = event.done, event.total
            return
        self._over.set()
        if event.state != "begins":
            self._write(event)
            return
        self._over, self._counted = threading.Event(), (None, None)
        threading.Thread(target=self._repeat, args=(event.step, self._over), daemon=True).start()

    def _repeat(self, step: str, over: threading.Event) -> None:
        began = time.perf_counter()
        while not over.wait(self._every_s):
            self._write(Event(step, "advances", time.perf_counter() - began, *self._counted))

    def _write(self, event: Event) -> None:
        stream = self._stream or sys.stderr
        if stream is not None:
            with contextlib.suppress(ValueError, OSError):  # closed meanwhile: nobody reads it
                print(f"{self._prefix}{event}", file=stream, flush=True)
