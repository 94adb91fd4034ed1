"""What a connection may send beside bodies."""

from __future__ import annotations

import functools
import http.client
import json
import socket
import threading

import pytest
from speaking import words

_CHUNKED = b"POST /v2/models/words/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def _sent(port: int, begin: bytes, piece: bytes) -> int:
    """Bytes that were sent until the connection was cut; 64 MiB where it is not: more than the buffers between hold."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(begin)
        try:
            while sent < 64 << 20:
                connection.sendall(piece)
                sent += len(piece)
        except ConnectionError:
            return sent
    return sent


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /v2 HTTP/1.1\r\nname: ",
        b"GET /",
        b"",
        _CHUNKED + b"1\r\n{\r\n0\r\nname: ",
        _CHUNKED + b"1;name=",
    ],
    ids=["header", "path", "blank lines", "trailer", "chunk extension"],
)
def test_what_is_no_body_does_not_fill_the_memory(shared, begin: bytes) -> None:
    piece = (b"xx" if begin else b"\r\n") * (16 << 10)
    assert _sent(shared.port, begin, piece) < 64 << 20, "the connection was cut"
    assert shared.infer("words", words()).status == 200


def test_headers_that_are_too_long_are_told(shared) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nname: " + b"x" * (66 << 10))
        assert connection.recv(100).startswith(b"HTTP/1.1 431 ")


def test_small_chunks_and_many_requests_of_a_connection_are_no_header(shared) -> None:
    body = b" " * 40_000 + json.dumps(words()).encode()
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
    for _ in range(3):
        pieces = (body[start : start + 1] for start in range(len(body)))
        connection.request("POST", "/v2/models/words/infer", pieces, encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
    connection.close()


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade"])
def test_an_offer_of_http2_is_passed_over(shared, name: bytes) -> None:
    """As `java.net.http` makes it with its first request."""
    body = json.dumps(words()).encode()
    head = b"POST /v2/models/words/infer HTTP/1.1\r\nContent-Length: %d\r\nHost: x\r\n"
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\n%s: h2c\r\n\r\n" % name
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
        for _ in range(2):
            connection.sendall(head % len(body) + offer + body)
            answer = connection.recv(65536)
            while b"outputs" not in answer:
                piece = connection.recv(65536)
                assert piece, answer
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200")


def test_requests_that_wait_for_their_turn_are_not_read_without_end(shared) -> None:
    many, sent = b"GET /v2 HTTP/1.1\r\nhost: x\r\nname: value\r\n\r\n" * 1000, 0
    with socket.create_connection(("127.0.0.1", shared.port), timeout=2) as connection:
        try:
            while sent < 100 << 20:
                connection.sendall(many)
                sent += len(many)
        except TimeoutError:
            pass
    assert sent < 100 << 20, "the server read on although nobody took its answers"
    assert shared.infer("words", words()).status == 200


def test_requests_that_wait_for_their_turn_are_all_answered(shared) -> None:
    count, answered, rest = 5_000, 0, b""
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
        many = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n" * count
        sender = threading.Thread(target=connection.sendall, args=(many,))
        sender.start()
        while answered < count:
            piece = connection.recv(1 << 20)
            assert piece
            rest += piece
            answered += rest.count(b"HTTP/1.1 200")
            rest = rest[-11:]
        sender.join()
    assert answered == count


def test_a_client_that_does_not_read_is_cut_off() -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from deploykit_serving.connection import Connection

    size, ended = 64 << 20, threading.Event()

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size)})
        ended.set()

    listener = socket.create_server(("127.0.0.1", 0))
    connection = functools.partial(Connection, headers_s=10, unread_s=0.3)
    config = uvicorn.Config(app, http=connection, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    with socket.create_connection(listener.getsockname(), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert ended.wait(30), "the answer that nobody reads is given up"
    server.should_exit = True
    thread.join(30)
    listener.close()
