"""The application before its artifacts are verified, and when something in it breaks; called as a server calls it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
from typing import Any

import pytest
from speaking import started, words

from deploykit_serving.models import Repository, Served, Trust
from deploykit_serving.settings import Settings

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")


@pytest.fixture
def made(artifacts):
    from deploykit_serving.app import application
    from deploykit_serving.logs import Log
    from deploykit_serving.metrics import Metrics

    lines = io.BytesIO()
    repository = Repository([Served.parse(f"words={artifacts.words}")], Settings(threads=1))
    yield repository, application(repository, Metrics(), Log(lines)), lines
    repository.close()


def ask(app: Any, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if given:
            return given.pop()
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"content-length", str(len(body)).encode())], "http_version": "1.1", "scheme": "http",
             "server": ("a", 1), "client": ("a", 2), "root_path": "", "asgi": {"version": "3.0"}}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(each.get("body", b"") for each in sent[1:])


def test_while_it_loads_it_is_live_and_not_ready(made) -> None:
    repository, app, _ = made
    body = json.dumps(words()).encode()
    for method in ("GET", "HEAD"):
        assert ask(app, method, "/v2/health/live")[0] == 200
        assert ask(app, method, "/v2/health/ready")[0] == 503
        assert ask(app, method, "/v2/models/words/ready")[0] == 503
    status, headers, _ = ask(app, "POST", "/v2/models/words/infer", body)
    assert status == 503 and headers["retry-after"] == "1"
    assert ask(app, "POST", "/v2/models/none/infer", body)[0] == 404
    assert ask(app, "GET", "/metrics")[0] == 200
    repository.load()
    assert ask(app, "GET", "/v2/health/ready")[0] == 200
    assert ask(app, "POST", "/v2/models/words/infer", body)[0] == 200


def test_after_the_end_requests_are_told_so(made) -> None:
    repository, app, _ = made
    repository.load()
    (model,) = repository.models()
    model.batcher.close()  # as where it is replaced between two looks
    status, headers, answer = ask(app, "POST", "/v2/models/words/infer", json.dumps(words()).encode())
    assert status == 503 and "retry-after" in headers and b"ending" in answer


def test_a_defect_fails_one_request_and_is_in_the_log(made, monkeypatch) -> None:
    repository, app, lines = made
    repository.load()
    body = json.dumps(words()).encode()
    with monkeypatch.context() as patch:
        patch.setattr("deploykit_serving.endpoint.write_answer", lambda *_a, **_k: 1 / 0)
        status, _, answer = ask(app, "POST", "/v2/models/words/infer", body)
    assert status == 500 and b"ZeroDivisionError" in answer
    assert any(json.loads(line)["event"] == "defect" for line in lines.getvalue().splitlines())
    assert ask(app, "POST", "/v2/models/words/infer", body)[0] == 200


def test_bodies_that_wait_are_bounded_together(artifacts) -> None:
    from deploykit_serving.app import application
    from deploykit_serving.logs import Log
    from deploykit_serving.metrics import Metrics

    repository = Repository([Served.parse(f"words={artifacts.words}")], Settings(threads=1, max_body_bytes=100,
                                                                                 max_held_bytes=100))  # fmt: skip
    app = application(repository, Metrics(), Log(io.BytesIO()))
    repository.load()
    app._infer._held = 50
    status, headers, _ = ask(app, "POST", "/v2/models/words/infer", b"x" * 60)
    assert status == 503 and headers["retry-after"] == "1" and app._infer._held == 50
    assert ask(app, "POST", "/v2/models/words/infer", b"x" * 50)[0] == 400 and app._infer._held == 50
    repository.close()


def test_who_announces_a_body_and_does_not_send_it_keeps_nobody_out(artifacts) -> None:
    head = b"POST /v2/models/words/infer HTTP/1.1\r\nhost: x\r\n%s\r\n\r\n"
    with started(f"words={artifacts.words}") as server, contextlib.ExitStack() as idle:
        for number in range(20):  # of 32 MiB each: more than twice the 256 MiB that may be held
            connection = idle.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            length = b"content-length: 33554432" if number % 2 else b"transfer-encoding: chunked"
            connection.sendall(head % length + b"1\r\n{")
        assert server.infer("words", words()).status == 200
        idle.close()
        server.until_figure('deploykit_requests_refused_total{reason="client_gone",status="499"}', 20)


def test_a_key_is_asked_of_what_is_loaded_and_of_what_replaces_it(artifacts, tmp_path) -> None:
    import shutil

    pytest.importorskip("cryptography", reason="cryptography is not installed")
    from deploykit.cli import main
    from deploykit.contract.errors import ArtifactError

    private, public = key_pair(tmp_path)
    folder = tmp_path / "words"
    shutil.copytree(artifacts.words, folder)
    events: list[str] = []
    served = [Served.parse(str(folder))]
    trust = Trust(key=str(public))
    with pytest.raises(ArtifactError):
        Repository(served, Settings(threads=1), trust=trust).load()
    assert main(["sign", str(folder), "--key", str(private)]) == 0
    repository = Repository(served, Settings(threads=1), trust=trust, event=lambda name, **_: events.append(name))
    repository.load()
    shutil.copytree(artifacts.words, tmp_path / "unsigned")
    shutil.rmtree(folder)
    (tmp_path / "unsigned").rename(folder)
    repository.refresh()
    assert events == ["model_ready", "reload_refused"] and repository.ready
    repository.close()


def key_pair(folder: Any) -> tuple[Any, Any]:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "k.pem", folder / "k.pub"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return private, public
