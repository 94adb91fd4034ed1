"""Nothing that PyTorch or a model's library warns, logs or prints while being traced reaches the terminal."""

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
