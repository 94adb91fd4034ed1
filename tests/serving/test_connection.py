"""What a connection may send beside bodies."""

from __future__ import annotations

import http.client
import json
import socket

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
