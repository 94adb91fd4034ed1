"""One connection of a client: limits of time and of bytes for what is no body, which uvicorn has none for.

Idle senders and those who do not read would keep connections for ever. A header, a chunk's head or a trailer without
an end would take all memory, because the parser keeps what it has not seen the end of; so would requests that are sent
faster than they are answered, because uvicorn reads on after each answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sized
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LARGEST_HEAD = 64 << 10  # twice what common proxies let through
_UNREAD_S = 30.0  # for a client to read on where the buffers between are full
_UPGRADE = re.compile(rb"(?<=\r\n)upgrade(?=:)", re.IGNORECASE)
_CHUNK_HEAD = 32  # of each piece of a body that comes in chunks, from clients that send many small ones


class Flow(FlowControl):  # type: ignore[misc]  # untyped where the lint environment runs
    """Reads nothing while requests that were read wait for their turn."""

    def __init__(self, transport: Any, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """See `FlowControl`."""
        if not self._waiting:
            super().resume_reading()


class Connection(HttpToolsProtocol):  # type: ignore[misc]  # as above
    """Ends where a request does not begin or its headers do not end in time, or where they are too long.

    Args:
        headers_s: how long a client may take for the headers of a request.
        unread_s: how long it may not read on where the buffers between are full.
        given: what uvicorn makes its connections of.
    """

    def __init__(self, *, headers_s: float, unread_s: float = _UNREAD_S, **given: Any) -> None:
        super().__init__(**given)
        self._headers_s = headers_s
        self._unread_s = unread_s
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._message = 0  # counts requests
        self._beside = 0  # bytes of the request that are no body, as far as they are known

    def connection_made(self, transport: Any) -> None:
        """Give the first request its time."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)
        self._late = self.loop.call_later(self._headers_s, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time limits."""
        self._in_time()
        self._read_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it; end a connection that sends too much beside bodies."""
        message = self._message
        self._beside += len(data)
        idle = self.cycle is None or self.cycle.response_complete
        super().data_received(_without_upgrade(data) if idle else data)
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
            self._late = self.loop.call_later(self._headers_s, self._too_late)

    def on_headers_complete(self) -> None:
        """The headers are there."""
        self._in_time()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of a body are bounded by who reads it."""
        self._beside -= len(body) + _CHUNK_HEAD
        super().on_body(body)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered: give it its time."""
        super().pause_writing()
        self._read_on()
        self._unread = self.loop.call_later(self._unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read on."""
        self._read_on()
        super().resume_writing()

    def _read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        if self.flow.read_paused:  # it is not the client's doing
            self._late = self.loop.call_later(self._headers_s, self._too_late)
        else:
            self._end(b"408 Request Timeout")

    def _end(self, status: bytes) -> None:
        self._in_time()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # else it would be taken for another answer
            self.transport.write(b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """A request whose offer of another protocol is passed over, as HTTP lets a server do.

    The parser would take what follows the headers for the other protocol: clients that offer HTTP/2 with each first
    request (Java's, `curl --http2`) would be answered as if they had sent no body.
    """
    end = data.find(b"\r\n\r\n")
    head = data[: max(end, 0)]
    if b"pgrade" not in head:
        return data
    return _UPGRADE.sub(b"x-offer", head) + data[end:]
