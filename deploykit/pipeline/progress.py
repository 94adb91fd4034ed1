"""One progress display for the whole pipeline, on standard error, and only where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


class Steps:
    """Shows the running step with a spinner; remembers how long each took.

    Args:
        enabled: False silences it; on anything but a terminal it is silent anyway.
    Attributes:
        seconds: wall time by step name, in order.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, *, spinner: bool = True) -> Iterator[None]:
        """Run one step; `spinner=False` where the step draws a bar of its own."""
        start = time.perf_counter()
        with self._display(name) if spinner and self.enabled else contextlib.nullcontext():
            yield
        self.seconds[name] = time.perf_counter() - start

    @contextlib.contextmanager
    def _display(self, name: str) -> Iterator[None]:
        from rich.console import Console

        with Console(stderr=True).status(name):
            yield
