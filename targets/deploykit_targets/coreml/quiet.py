"""`kept_quiet`: what coremltools prints, warns, logs and draws goes into the artifact's log, never to the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("", "coremltools", "torch", "torchao")


class _Sink(logging.Handler):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.append(record.getMessage())


@contextlib.contextmanager
def kept_quiet(log: list[str]) -> Iterator[None]:
    """Collect what a converter says, instead of showing it; progress bars are dropped."""
    out, bars, sink = io.StringIO(), io.StringIO(), _Sink(log)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.handlers[:] for logger in loggers]
    for logger in loggers:
        logger.handlers = [sink] if logger.propagate is False or logger.name == "root" else []
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(bars),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers
        said = (w for w in caught if not issubclass(w.category, ResourceWarning))  # temporary folders
        log.extend(dict.fromkeys(str(warning.message) for warning in said))
        log.extend(line for line in out.getvalue().splitlines() if line.strip())
