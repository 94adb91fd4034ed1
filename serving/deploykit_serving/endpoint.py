"""One inference request: admitted by its size, read, run in a batch, answered before its deadline.

Written against ASGI itself, because every layer between costs each request. What is refused is refused as early as it
is known: a full queue and a body that is too large before the body is read.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

from deploykit.contract.errors import UsageError
from deploykit_serving.batcher import Closed, NeverFits, Outcome, QueueFull
from deploykit_serving.drift import Drift
from deploykit_serving.logs import Log
from deploykit_serving.metrics import Metrics
from deploykit_serving.models import Model, Repository
from deploykit_serving.protocol import Answer, Request, read_request, write_answer
from deploykit_serving.refusals import Refusal, malformed

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BODY_S = 30.0  # from the headers to the last byte of the body
_SEND_S = 30.0  # for a client to read an answer that does not fit into the buffers between
_UNREAD_BYTES = 65_536
_LINGER_S = 1.0  # a client that is refused while it sends may read why
_LINGER_BYTES = 16 << 20
_ATTEMPTS = 3
_STATUS_OF_CLIENT_GONE = 499


class ClientGone(Exception):  # noqa: N818 - nobody is there to be told
    """The client closed its connection."""


@dataclass(frozen=True)
class _Headers:
    """What of the headers counts."""

    length: int | None
    json_length: int | None

    @classmethod
    def of(cls, scope: Scope) -> _Headers:
        """Read them.

        Raises:
            Refusal: a length that is no number, or a body in an encoding.
        """
        length = json_length = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = _number("Content-Length", value)
            elif name == b"inference-header-content-length":
                json_length = _number("Inference-Header-Content-Length", value)
            elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise Refusal(415, "Content-Encoding: bodies are read as they are", reason="encoded", close=True)
        return cls(length, json_length)


def _number(name: str, value: bytes) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > 18:
        raise malformed(name, "is not a number of bytes")
    return int(text)


class InferEndpoint:
    """The ASGI application of `.../infer`."""

    def __init__(self, repository: Repository, metrics: Metrics, log: Log, drift: Drift | None = None) -> None:
        self._repository = repository
        self._metrics = metrics
        self._log = log
        self._drift = drift
        self._settings = repository.settings
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived = time.perf_counter()
        path = scope["path_params"]
        name, version = path["name"], path.get("version")
        try:
            model, request, outcome = await self._run(scope, receive, name, version, arrived)
            answer = write_answer(request, outcome.outputs or {}, model=model.served.name, version=model.served.version)
        except ClientGone:
            self._metrics.refused("client_gone", _STATUS_OF_CLIENT_GONE)
            return
        except Refusal as refusal:
            self._tell(refusal, name, version)
            await refuse(send, refusal, receive)
            return
        except Exception as error:  # a defect of ours: one request fails, and the log has the traceback
            self._log.event("defect", traceback="".join(traceback.format_exception(error)))
            defect = Refusal(500, f"unexpected {type(error).__name__}; the server's log has it", reason="defect")
            self._tell(defect, name, version)
            await refuse(send, defect, receive)
            return
        try:
            await _send(send, answer)
        except TimeoutError:  # it does not read: its connection ends with this call
            self._metrics.refused("slow_reader", _STATUS_OF_CLIENT_GONE)
            return
        seconds = time.perf_counter() - arrived
        self._metrics.of(model.served.name, model.served.version).answered_in(seconds, outcome.queued_s)
        if self._log.requests:
            self._log.event("request", **_facts(model, request, outcome, seconds))
        if self._drift is not None and outcome.outputs is not None:
            self._drift.consider(model, request.feeds, outcome.outputs)

    def _tell(self, refusal: Refusal, name: str, version: str | None) -> None:
        self._metrics.refused(refusal.reason, refusal.status)
        if self._log.requests or refusal.status == 500:
            facts = {"model": name[:128], "version": version, "status": refusal.status, "reason": refusal.reason}
            self._log.event("refused", **facts, message=refusal.message[:500])

    async def _run(
        self, scope: Scope, receive: Receive, name: str, version: str | None, arrived: float
    ) -> tuple[Model, Request, Outcome]:
        """Read, parse and run; the bytes of the body count as held until the answer is known."""
        headers = _Headers.of(scope)
        model = self._repository.find(name, version)
        if model.batcher.waiting_rows >= model.batcher.max_queue:
            raise _full(model.batcher.retry_after_s)
        self._admit(headers.length or 0, headers.length or 0)
        body = await self._body(receive)
        try:
            for attempt in range(_ATTEMPTS):
                request = read_request(body, headers.json_length, model.artifact.inputs, model.artifact.outputs)
                deadline_ms = min(request.timeout_ms or math.inf, self._settings.deadline_ms)
                try:
                    return model, request, await _ran(model, request, arrived + deadline_ms / 1e3, receive)
                except Closed:  # it was replaced meanwhile: the new one has the request
                    if attempt == _ATTEMPTS - 1:
                        break
                    model = self._repository.find(name, version)
            raise Refusal(503, "the server is ending", reason="ending", retry_after_s=1, close=True)
        finally:
            self._held -= len(body)

    def _admit(self, coming: int, size: int) -> None:
        """Refuse bytes of a body, before they are read where their number was announced.

        Only what has come is held against others: else a few who announce much, and send nothing, would keep all out.

        Args:
            coming: bytes of this body that are not held yet.
            size: of all of it, as far as it is known.
        Raises:
            Refusal: 413: it is larger than a body may be; 503: those that wait leave no room.
        """
        if size > self._settings.max_body_bytes:
            raise _too_large(self._settings.max_body_bytes)
        if self._held + coming > self._settings.max_held_bytes:
            message = "the bodies of the requests that wait leave no room for this one"
            raise Refusal(503, message, reason="bytes_full", retry_after_s=1, close=True)

    async def _body(self, receive: Receive) -> bytes | bytearray:
        """All of the body, whose bytes are held from now on.

        Raises:
            Refusal: 408: it does not come; 413, 503: see `_admit`.
            ClientGone: its sender left.
        """
        whole = bytearray()
        try:
            async with asyncio.timeout(_BODY_S):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ClientGone
                    piece: bytes = message.get("body", b"")
                    self._admit(len(piece), len(whole) + len(piece))
                    self._held += len(piece)
                    if not whole and not message.get("more_body", False):
                        return piece
                    whole += piece
                    if not message.get("more_body", False):
                        return whole
        except BaseException as error:
            self._held -= len(whole)
            if not isinstance(error, TimeoutError):
                raise
            message_text = f"the body did not come within {_BODY_S:g} s"
            raise Refusal(408, message_text, reason="slow_body", close=True) from error


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than {limit} bytes", reason="too_large", close=True)


def _full(retry_after_s: float) -> Refusal:
    return Refusal(503, "the queue is full", reason="queue_full", retry_after_s=max(1, math.ceil(retry_after_s)))


# -- waiting for a run ------------------------------------------------------------------------------------------


async def _ran(model: Model, request: Request, deadline: float, receive: Receive) -> Outcome:
    """What became of the request.

    Raises:
        Refusal: 400: more rows than the queue holds, or what the session refuses; 500: its run failed; 503: no room;
            504: no answer before the deadline.
        ClientGone: nobody waits for it any more.
        Closed: the model was replaced.
    """
    if time.perf_counter() >= deadline:
        raise _late()
    at_once = model.batcher.run_now(request.feeds)
    if at_once is not None:
        if at_once.error is not None:
            raise _failure(at_once.error)
        return at_once
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Outcome] = loop.create_future()

    def settle(outcome: Outcome) -> None:
        if not found.done():
            found.set_result(outcome)

    def done(outcome: Outcome) -> None:
        loop.call_soon_threadsafe(settle, outcome)

    try:
        ticket = model.batcher.submit(request.feeds, done)
    except QueueFull as error:
        raise _full(error.retry_after_s) from error
    except NeverFits as error:
        raise malformed("inputs[0].shape", str(error)) from error
    timer = loop.call_later(deadline - time.perf_counter(), _expire, found)
    left = asyncio.ensure_future(receive())
    left.add_done_callback(lambda _: None if found.done() else found.set_exception(ClientGone()))
    try:
        outcome = await found
    except BaseException:
        model.batcher.abandon(ticket)
        raise
    finally:
        timer.cancel()
        left.cancel()
    if outcome.error is not None:
        raise _failure(outcome.error)
    return outcome


def _expire(found: asyncio.Future[Outcome]) -> None:
    if not found.done():
        found.set_exception(_late())


def _late() -> Refusal:
    return Refusal(504, "no answer before the deadline of the request", reason="deadline")


def _failure(error: Exception) -> Refusal:
    """A run that failed: the client's doing where the session says so, the server's else."""
    if isinstance(error, UsageError):
        return malformed("inputs", error.message)
    return Refusal(500, f"the run failed: {type(error).__name__}: {str(error)[:500]}", reason="run_failed")


# -- answers ----------------------------------------------------------------------------------------------------


async def _send(send: Send, answer: Answer) -> None:
    headers = [(b"content-length", str(len(answer.body)).encode())]
    if answer.header_length is None:
        headers.append((b"content-type", b"application/json"))
    else:
        headers.append((b"content-type", b"application/octet-stream"))
        headers.append((b"inference-header-content-length", str(answer.header_length).encode()))
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    body = {"type": "http.response.body", "body": answer.body}
    if len(answer.body) <= _UNREAD_BYTES:
        await send(start)
        await send(body)
        return
    async with asyncio.timeout(_SEND_S):
        await send(start)
        await send(body)


async def refuse(send: Send, refusal: Refusal, receive: Receive | None = None) -> None:
    """Say why a request is not answered.

    Where the rest of the body is not read, the connection ends after the answer; what the client still sends is taken
    for a moment, because a connection that is cut while it sends shows it no answer.
    """
    body = msgspec.json.encode({"error": refusal.message})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
    if refusal.close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    lingers = refusal.close and receive is not None
    await send({"type": "http.response.body", "body": body, "more_body": lingers})
    if lingers and receive is not None:
        await _linger(receive)
        await send({"type": "http.response.body", "body": b""})


async def _linger(receive: Receive) -> None:
    taken = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while taken < _LINGER_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                taken += len(message.get("body", b""))
    except TimeoutError:
        return


def _facts(model: Model, request: Request, outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {
        "model": model.served.name,
        "version": model.served.version,
        "id": request.id[:128],
        "status": 200,
        "rows": model.batcher.rows_of(request.feeds),
        "batch_rows": outcome.batch_rows,
        "queued_ms": round(outcome.queued_s * 1e3, 3),
        "run_ms": round(outcome.run_s * 1e3, 3),
        "total_ms": round(seconds * 1e3, 3),
    }
