"""`kept_quiet`: what converters print, warn and log goes into the artifact's log, never to the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


class _Sink(logging.Handler):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.append(record.getMessage())


@contextlib.contextmanager
def kept_quiet(log: list[str]) -> Iterator[None]:
    """Collect what a converter prints, warns and logs, instead of showing it."""
    out, sink, root = io.StringIO(), _Sink(log), logging.getLogger()
    # PyTorch's loggers do not pass on to the root: their handlers hold the terminal, whatever stderr is by now.
    loggers = [root, *(found for found in root.manager.loggerDict.values() if isinstance(found, logging.Logger))]
    before = [(logger, logger.handlers[:]) for logger in loggers if logger is root or logger.handlers]
    for logger, _ in before:
        logger.handlers = [sink]
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for logger, handlers in before:
            logger.handlers = handlers
        log.extend(str(warning.message) for warning in caught)
        log.extend(line for line in out.getvalue().splitlines() if line.strip())
