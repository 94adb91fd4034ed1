"""What a setting is worth: a server in a process of its own, put under load over loopback, and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit.contract.errors import DeviceError
from deploykit.plugin.artifact import Artifact
from deploykit_serving.batcher import is_batched
from deploykit_serving.load import infer_request, put_under_load
from deploykit_serving.models import Trust
from deploykit_serving.settings import Settings
from deploykit_serving.tuning import Candidate, Measured

_STARTS_S = 300.0
_ENDS_S = 60.0
_MODEL = "tuned"
_WARM_S = 0.3


@dataclass(frozen=True)
class Trial:
    """How candidates are measured.

    Attributes:
        artifact: what is served.
        base: settings that are not searched.
        clients: that ask as fast as they are answered.
        short_s, long_s: of a first and of a longer look.
        trust: what vouches for the artifact.
    """

    artifact: Artifact
    base: Settings
    clients: int
    short_s: float = 1.0
    long_s: float = 2.0
    trust: Trust | None = None

    def settings(self, candidate: Candidate) -> Settings:
        """The settings of a candidate; the queue holds a row of each client beside a whole batch."""
        return self.base.changed(
            instances=candidate.instances,
            threads=candidate.threads,
            max_batch=candidate.max_batch,
            max_queue=max(self.base.max_queue, self.clients + candidate.max_batch),
        )

    def once(self, candidate: Candidate) -> Measured:
        """See `Measure`.

        Raises:
            DeviceError: its server did not start, died, or answered nothing.
        """
        with self._server(candidate) as server:
            return self._look(candidate, server, self.short_s)

    def in_turns(self, candidates: Sequence[Candidate], turns: int) -> dict[Candidate, list[Measured]]:
        """See `Measure`; the servers that are not under load wait.

        Raises:
            DeviceError: as for `once`.
        """
        found: dict[Candidate, list[Measured]] = {candidate: [] for candidate in candidates}
        with ExitStack() as stack:
            servers = {candidate: stack.enter_context(self._server(candidate)) for candidate in candidates}
            for _ in range(turns):
                for candidate, server in servers.items():
                    found[candidate].append(self._look(candidate, server, self.long_s))
        return found

    def _server(self, candidate: Candidate) -> AbstractContextManager[tuple[str, int]]:
        return server_of(self.artifact, self.settings(candidate), self.trust or Trust())

    def _look(self, candidate: Candidate, server: tuple[str, int], seconds: float) -> Measured:
        url, pid = server
        request = infer_request(url, _MODEL, self.artifact.inputs, self._feeds())
        load = put_under_load(url, request, clients=self.clients, seconds=seconds, warm_s=_WARM_S)
        if not load.answered_ms:
            raise DeviceError(f"a server with {candidate} answered nothing: {load.other or 'all was refused'}")
        p99 = float(np.percentile(load.answered_ms, 99))
        return Measured(candidate, load.per_second, p99, peak_bytes_of(pid))

    def _feeds(self) -> dict[str, np.ndarray]:
        """The golden request, cut to one row where the batch axis is dynamic."""
        whole = dict(self.artifact.golden().inputs[0])
        batched = is_batched(self.artifact.inputs, self.artifact.outputs)
        return {name: array[:1] for name, array in whole.items()} if batched else whole


@contextmanager
def server_of(artifact: Artifact, settings: Settings, trust: Trust) -> Iterator[tuple[str, int]]:
    """A server of one artifact: its URL and process.

    Raises:
        DeviceError: it did not begin to serve; the message has what it said.
    """
    command = [sys.executable, "-m", "deploykit", "serve", f"{_MODEL}={artifact.path.resolve()}", "--port", "0"]
    command += ["--no-log-requests", *_arguments(settings), *(["--key", trust.key] if trust.key else [])]
    command += ["--allow-native"] if trust.allow_native else []
    # `-P`: no module of the folder that it is called in
    process = subprocess.Popen([command[0], "-P", *command[1:]], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               env=_environment())  # fmt: skip
    lines = _Lines(process)
    try:
        yield lines.url(), process.pid
    finally:
        process.terminate()
        try:
            process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        lines.close()


def _environment() -> dict[str, str]:
    """This process's own path, so that it is this deploykit that is measured."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _arguments(settings: Settings) -> list[str]:
    values = {
        "--instances": settings.instances,
        "--threads": settings.threads_each,
        "--max-batch": settings.max_batch,
        "--max-wait-ms": settings.wait_s * 1e3,
        "--max-queue": settings.max_queue,
        "--deadline-ms": settings.deadline_ms,
    }
    return [part for name, value in values.items() for part in (name, str(value))]


class _Lines:
    """What a server says on standard error, read to its end so that it never waits for us."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._said: list[str] = []
        self._url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def url(self) -> str:
        """Where it listens, once it is ready."""
        if not self._ready.wait(_STARTS_S) or not self._url:
            said = " ".join(line.strip() for line in self._said[-4:])
            raise DeviceError(f"the server that was to be measured did not start: {said[:800] or 'it said nothing'}")
        return self._url

    def close(self) -> None:
        """Wait for its last word."""
        self._thread.join(_ENDS_S)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said = [*self._said[-20:], line.decode(errors="replace")]
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == "ready":
                self._url = event["url"]
                self._ready.set()
        self._ready.set()  # it ended


def peak_bytes_of(pid: int) -> int:
    """The most that was resident of a process so far; what is resident now where the system does not keep that.

    Raises:
        DeviceError: there is no such process any more.
    """
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error as error:
        raise DeviceError(f"the server that was measured ended: {error}") from error
