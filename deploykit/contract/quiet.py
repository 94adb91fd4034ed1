"""What PyTorch, a model's library or a converter warns, logs, prints and draws never reaches the terminal."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings and log records of all libraries inside the block; exceptions pass."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def silent() -> Iterator[None]:
    """Drop what is printed inside the block: tracing runs `forward` again, and prints half a graph when it fails."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def kept_quiet(log: list[str]) -> Iterator[None]:
    """Append what a converter logs, warns and prints to `log` instead of showing it; progress bars are dropped.

    Not kept either: ResourceWarnings, which tell of the converter's own temporary files.
    """
    out, sink = io.StringIO(), _Sink(log)
    before = [(logger, logger.handlers[:]) for logger in _loggers_with_handlers()]
    for logger, _ in before:
        logger.handlers = [sink]
    try:
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(out), redirect_stderr(out):
            warnings.simplefilter("always")
            yield
    finally:
        for logger, handlers in before:
            logger.handlers = handlers
        kept = (warning for warning in caught if not issubclass(warning.category, ResourceWarning))
        log.extend(dict.fromkeys(str(warning.message) for warning in kept))
        log.extend(line for line in out.getvalue().split("\n") if line.strip() and "\r" not in line)


def _loggers_with_handlers() -> list[logging.Logger]:
    """The root, and libraries' own: theirs hold the terminal, whatever `sys.stderr` is by now."""
    root = logging.getLogger()
    found = (logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger))
    return [root, *(logger for logger in found if logger.handlers)]


class _Sink(logging.Handler):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.append(record.getMessage())
