"""One connection of a client: limits of time and of bytes for what is no body, which uvicorn has none for.

Idle senders would take all connections, and a header, a chunk's head or a trailer without an end all memory: the
parser keeps what it has not seen the end of.
"""

from __future__ import annotations

import asyncio
from typing import Any

_LARGEST_HEAD = 64 << 10  # twice what common proxies let through
_CHUNK_HEAD = 32  # of each piece of a body that comes in chunks, from clients that send many small ones


def connection_of(headers_s: float) -> Any:
    """uvicorn's connection with the limits of this module.

    Args:
        headers_s: how long a client may take for the headers of a request.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Connection(HttpToolsProtocol):  # type: ignore[misc]  # untyped where the lint environment runs
        """Ends where a request does not begin or its headers do not end in time, or where they are too long."""

        _late: asyncio.TimerHandle | None = None
        _message = 0  # counts requests
        _beside = 0  # bytes of the request that are no body, as far as they are known

        def connection_made(self, transport: Any) -> None:
            """Give the first request its time."""
            super().connection_made(transport)
            self._late = self.loop.call_later(headers_s, self._end, b"408 Request Timeout")

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget the time limit."""
            self._in_time()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Parse it; end a connection that sends too much beside bodies."""
            message = self._message
            self._beside += len(data)
            super().data_received(data)
            if self._message > max(message, 1):  # one ended in this piece: what is the next one's is not known
                self._beside = 0
            self._beside = max(0, self._beside)
            if self._beside > _LARGEST_HEAD:
                self._end(b"431 Request Header Fields Too Large")

        def on_message_begin(self) -> None:
            """Give a later request its time."""
            super().on_message_begin()
            self._message += 1
            if self._late is None:
                self._late = self.loop.call_later(headers_s, self._end, b"408 Request Timeout")

        def on_headers_complete(self) -> None:
            """The headers are there."""
            self._in_time()
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            """Bytes of a body are bounded by who reads it."""
            self._beside -= len(body) + _CHUNK_HEAD
            super().on_body(body)

        def _in_time(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _end(self, status: bytes) -> None:
            self._in_time()
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete:  # else it would be taken for another answer
                self.transport.write(b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status)
            self.transport.close()

    return Connection
