"""The one line that shows where a search is: on standard error, and only where that is a terminal."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deploykit.contract.progress import Event, Progress

if TYPE_CHECKING:
    from deploykit_tuning.climb import Candidate

_LOG = logging.getLogger("deploykit")


class Line:
    """A spinner with the running step, the best figures until now, and the seconds since it began.

    Args:
        enabled: False silences it; a function is told each step as it begins.
        wanted: the goal in words.
    """

    def __init__(self, *, enabled: Progress, wanted: str = "") -> None:
        self._enabled, self._wanted = enabled is True and sys.stderr.isatty(), wanted
        self._listener = enabled if callable(enabled) else None
        self._began, self._status = time.perf_counter(), None
        self._shown: Any = None

    def __enter__(self) -> Self:
        if self._enabled:
            from rich.console import Console

            self._shown = Console(stderr=True).status("tune")
            self._shown.__enter__()
        return self

    def show(self, step: str, best: Candidate | None) -> None:
        """Say which step runs."""
        _LOG.info("tune: %s", step)
        if self._listener is not None:
            self._listener(Event(f"tune: {step}", "begins"))
        if self._shown is not None:
            self._shown.update(self.text(step, best))

    def text(self, step: str, best: Candidate | None) -> str:
        """What the line says."""
        parts = [f"tune: {step}"]
        if best is not None:
            found = best.figures
            metric = "" if found.metric is None else f", metric {found.metric:.4g}"
            parts.append(f"best {'-' if found.sqnr_db is None else f'{found.sqnr_db:.1f} dB'}{metric} ({best.step})")
        parts += [f"goal {self._wanted}"] if self._wanted else []
        return " · ".join((*parts, f"{time.perf_counter() - self._began:.0f} s"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown.__exit__(kind, error, trace)
