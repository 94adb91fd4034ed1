"""Logs as one JSON object a line, on standard error: `time`, `event`, and what belongs to it."""

from __future__ import annotations

import sys
import threading
import time
from typing import IO, Any

import msgspec


class Log:
    """Writes events.

    Args:
        stream: binary; None for standard error.
        requests: whether each answered request is an event.
    """

    def __init__(self, stream: IO[bytes] | None = None, *, requests: bool = True) -> None:
        self._stream = stream if stream is not None else getattr(sys.stderr, "buffer", None)
        self.requests = requests
        self._lock = threading.Lock()

    def event(self, event: str, /, **facts: Any) -> None:
        """Write one line; a reader that is gone is no reason to stop serving."""
        if self._stream is None:
            return
        line = msgspec.json.encode({"time": round(time.time(), 6), "event": event, **facts}, enc_hook=str) + b"\n"
        try:
            with self._lock:
                self._stream.write(line)
                self._stream.flush()
        except (OSError, ValueError):
            self._stream = None
