"""Servers in processes of their own, and the clients that tests are."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit

STARTED_S = 60.0


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body if length is None else self.body[: int(length)])

    @property
    def error(self) -> str:
        return str(self.document["error"])


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if isinstance(body, dict):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def infer(self, model: str, body: Any, **how: Any) -> Reply:
        return self.ask("POST", f"/v2/models/{model}/infer", body, **how)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]

    def wait_for(self, name: str, count: int = 1, seconds: float = STARTED_S) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while len(self.events(name)) < count:
            ended = self.process.poll() is not None
            if ended and len(self.events(name)) < count:
                time.sleep(0.2)
            if time.monotonic() > deadline or (ended and len(self.events(name)) < count):
                raise AssertionError(f"no {name}: {self.lines[-5:]} {self.plain[-20:]}")
            time.sleep(0.02)
        return self.events(name)[count - 1]

    def figures(self) -> dict[str, float]:
        found = {}
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def until_figure(self, name: str, value: float) -> None:
        deadline = time.monotonic() + STARTED_S
        while self.figures().get(name) != value:
            assert time.monotonic() < deadline, (name, self.figures())
            time.sleep(0.02)

    def end(self, *, with_signal: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        return self.process.wait(timeout=STARTED_S)


Start = Callable[..., Any]


@contextmanager
def started(*arguments: object, ready: bool = True) -> Iterator[Server]:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    command = [sys.executable, "-m", "deploykit", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ})
    server = Server(process)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            try:
                server.lines.append(json.loads(line))
            except ValueError:
                server.plain.append(line.decode(errors="replace"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if ready:
            server.wait_for("ready")
            server.port = int(server.wait_for("listening")["url"].rpartition(":")[2])
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def tensor(array: np.ndarray, name: str = "tokens", datatype: str = "INT64", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist(), **more}


def words(*rows: list[int], **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor(np.array(rows or [[1, 2, 3, 4]]))], **more}


def values(reply: Reply) -> np.ndarray:
    (output,) = reply.document["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def expected(path: Path, **feeds: np.ndarray) -> np.ndarray:
    with deploykit.load(path).open(threads=1) as session:
        (output,) = session.run(feeds).values()
        return output
