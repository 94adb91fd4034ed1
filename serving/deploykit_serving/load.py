"""Clients that ask as fast as they are answered, over plain sockets: what puts a server under load to measure it.

Each client has one connection and one request under way. The request is made once, so that the clients cost little
beside the server that is measured on the same machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from deploykit.contract.errors import DeviceError
from deploykit.contract.tensors import Feeds, TensorSpec
from deploykit_serving.datatypes import datatype_of

_LENGTH = b"\r\ncontent-length: "
_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass
class Load:
    """What clients saw.

    Attributes:
        seconds: wall time of the measured part.
        answered_ms: of each answer (200), in the order of their arrival.
        refused_ms: of each refusal (503).
        other: how many had another status, by status.
    """

    seconds: float
    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    other: dict[int, int] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.answered_ms) / self.seconds if self.seconds else 0.0


def infer_request(url: str, model: str, inputs: Sequence[TensorSpec], feeds: Feeds, *, binary: bool = True) -> bytes:
    """The bytes of an inference request: head, JSON, and the tensors behind it where they go as binary data.

    Args:
        url: of the server.
        feeds: one array per input, of the dtypes of `inputs`.
    """
    tensors = []
    for spec in inputs:
        array = feeds[spec.name]
        one = {"name": spec.name, "shape": array.shape, "datatype": datatype_of(spec)}
        how = {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.ravel().tolist()}
        tensors.append({**one, **how})
    document = {"inputs": tensors, "parameters": {"binary_data_output": binary}}
    text = msgspec.json.encode(document)
    blobs = b"".join(feeds[spec.name].tobytes() for spec in inputs) if binary else b""
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", f"host: {urlsplit(url).netloc}"]
    lines.append(f"content-type: application/{'octet-stream' if binary else 'json'}")
    if binary:
        lines.append(f"inference-header-content-length: {len(text)}")
    lines.append(f"content-length: {len(text) + len(blobs)}")
    return "\r\n".join([*lines, "", ""]).encode() + text + blobs


def put_under_load(
    url: str, request: bytes, *, clients: int, seconds: float, requests: int | None = None, warm_s: float = 0.0
) -> Load:
    """Let clients send a request again and again.

    Args:
        url: of the server, such as `http://127.0.0.1:8000`.
        request: all of it, as `infer_request` makes it.
        clients: connections.
        seconds: how long to measure.
        requests: end earlier, after so many.
        warm_s: how long before that, not counted.
    Raises:
        DeviceError: no client could reach the server, or all were cut off.
    """
    return asyncio.run(_driven(url, request, clients=clients, seconds=seconds, requests=requests, warm_s=warm_s))


async def _driven(
    url: str, request: bytes, *, clients: int, seconds: float, requests: int | None, warm_s: float
) -> Load:
    place = urlsplit(url)
    host, port = place.hostname or "127.0.0.1", place.port or 80
    loop = asyncio.get_running_loop()
    shared = _Shared(request, Load(0.0), requests)
    try:
        for _ in range(clients):
            await loop.create_connection(lambda: _Client(shared), host, port)
    except OSError as error:
        raise DeviceError(f"{url} cannot be reached: {error.strerror or error}") from error
    if warm_s:
        await shared.end(warm_s)
        shared.load = Load(0.0)
    began = time.perf_counter()
    await shared.end(seconds)
    shared.load.seconds = time.perf_counter() - began
    shared.over = True
    for client in list(shared.clients):
        client.close()
    if not shared.load.answered_ms and not shared.load.refused_ms and not shared.load.other:
        raise DeviceError(f"{url} answered none of {clients} clients in {seconds:g} s")
    return shared.load


class _Shared:
    """What the clients of a load share."""

    def __init__(self, request: bytes, load: Load, requests: int | None) -> None:
        self.request = request
        self.load = load
        self.left = requests
        self.over = False
        self.clients: set[_Client] = set()
        self._done = asyncio.Event()

    async def end(self, seconds: float) -> None:
        """Wait for the end of the time, of the requests, or of the last connection."""
        try:
            async with asyncio.timeout(seconds):
                await self._done.wait()
        except TimeoutError:
            return

    def count(self, status: int, milliseconds: float) -> None:
        """Add an answer."""
        if status == 200:
            self.load.answered_ms.append(milliseconds)
        elif status == 503:
            self.load.refused_ms.append(milliseconds)
        else:
            self.load.other[status] = self.load.other.get(status, 0) + 1
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.over = True
                self._done.set()

    def lost(self, client: _Client) -> None:
        """A connection ended."""
        self.clients.discard(client)
        if not self.clients:
            self._done.set()


class _Client(asyncio.Protocol):
    """One connection that sends again when it is answered."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._data = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._shared.clients.add(self)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Take an answer once it is whole, and send the next."""
        self._data += data
        head = self._data.find(_END)
        if head < 0:
            return
        if not self._is_whole(head):
            return
        self._shared.count(int(self._data[9:12]), (time.perf_counter() - self._sent) * 1e3)
        self._data = b""
        if not self._shared.over:
            self._send()

    def _is_whole(self, head: int) -> bool:
        """Whether the body behind the head is there; servers of others may send it in chunks."""
        at = self._data.find(_LENGTH, 0, head + 2)
        if at < 0 and b"\r\ntransfer-encoding: chunked" in self._data[: head + 2]:
            return self._data.endswith(_LAST_CHUNK)
        length = int(self._data[at + len(_LENGTH) : self._data.find(b"\r", at + 2)]) if at >= 0 else 0
        return len(self._data) >= head + len(_END) + length

    def connection_lost(self, exc: Exception | None) -> None:
        """One client less."""
        del exc
        self._shared.lost(self)

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        if self._transport is not None:
            self._transport.write(self._shared.request)
