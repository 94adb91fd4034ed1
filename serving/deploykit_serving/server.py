"""A server from its sockets to its end: time limits of connections, signals, draining.

It listens before the artifacts are verified, so that probes see it live and not ready; where one is refused it ends
with that artifact's error. It is bound to this machine alone unless another address is named: it has no passwords.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from deploykit.contract.errors import DeploykitError, UsageError
from deploykit.contract.optional import require
from deploykit_serving.app import application
from deploykit_serving.drift import Drift
from deploykit_serving.logs import Log
from deploykit_serving.metrics import Metrics
from deploykit_serving.models import Repository, Served, Trust
from deploykit_serving.monitor import Monitor
from deploykit_serving.settings import Settings

_HEADERS_S = 10.0
_KEEP_ALIVE_S = 65  # longer than the minute of common load balancers, which must be those that close
_PURPOSE = "serve artifacts"
# uvloop accepts one connection of a socket in each of its turns, which are long under load: of clients that come at
# once the last would wait for seconds. So it has the same socket several times.
_ACCEPTS = 16
# A run that ends waits this long for the event loop to let its thread go on; Python's own 5 ms are many short runs.
_SWITCH_S = 0.0005


@dataclass(frozen=True)
class Listening:
    """Where and how a server listens.

    Attributes:
        host: address; this machine alone by default.
        port: 0 for a free one.
        drain_s: how long requests that have begun may take once the server is told to end.
        poll_s: how often replaced artifacts are looked for.
        headers_s: how long a client may take for the headers of a request.
        max_connections: that are open at once.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain_s: float = 30.0
    poll_s: float = 1.0
    headers_s: float = _HEADERS_S
    max_connections: int = 1024


@dataclass(frozen=True)
class Baseline:
    """A float artifact with which a share of the answers is compared; see `deploykit_serving.drift`."""

    path: Path
    share: float = 0.01


@dataclass(frozen=True)
class Ended:
    """What a server did until it was told to end.

    Attributes:
        url: where it listened.
        seconds: how long.
        requests: HTTP requests of all kinds.
    """

    url: str
    seconds: float
    requests: int


def serve(
    served: Sequence[Served],
    settings: Settings,
    listening: Listening | None = None,
    *,
    baseline: Baseline | None = None,
    trust: Trust | None = None,
    log: Log | None = None,
) -> Ended:
    """Serve artifacts until SIGTERM or Ctrl-C.

    Raises:
        UsageError: the port is taken, or what is asked of an artifact does not fit it.
        DeploykitError: an artifact is refused; see `deploykit_serving.models.Model.open`.
        MissingDependencyError: a package of the extra `serve` is not installed.
    """
    sys.setswitchinterval(_SWITCH_S)
    for module in ("uvicorn", "httptools", "starlette", "prometheus_client"):
        require(module, extra="serve", purpose=_PURPOSE)
    place, log = listening or Listening(), log or Log()
    metrics = Metrics()
    repository = Repository(
        served,
        settings,
        watcher_of=lambda one: metrics.of(one.name, one.version),
        trust=trust,
        event=_told(log, metrics),
    )
    drift = None if baseline is None else _drift(baseline, trust or Trust(), metrics, log)
    monitor = Monitor.here()
    metrics.watch(repository.models, monitor.snapshot)
    with contextlib.closing(_bound(place)) as listener:
        try:
            running = _Running(repository, application(repository, metrics, log, drift), place, log)
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                return runner.run(running.until_told(listener))
        finally:
            repository.close()
            if drift is not None:
                drift.close()


def _drift(baseline: Baseline, trust: Trust, metrics: Metrics, log: Log) -> Drift:
    return Drift(trust.load(baseline.path), baseline.share, metrics, log)


def _told(log: Log, metrics: Metrics) -> Any:
    """Events of the repository go to the log, those of loading to the figures, too."""

    def event(name: str, **facts: Any) -> None:
        log.event(name, **facts)
        if name != "artifact_gone":
            metrics.loaded(facts["model"], facts["version"], name.rpartition("_")[2])

    return event


def _bound(place: Listening) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the address cannot be had.
    """
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise UsageError(
            f"cannot listen on {place.host} port {place.port}: {getattr(error, 'strerror', None) or error}",
            hint="--port 0 takes a free port",
        ) from error
    return listener


def _loop_factory() -> Any:
    """uvloop where it is installed (it is not made for Windows)."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Running:
    """One server while it runs."""

    def __init__(self, repository: Repository, app: Any, place: Listening, log: Log) -> None:
        self._repository = repository
        self._app = app
        self._place = place
        self._log = log
        self._refused: DeploykitError | None = None

    async def until_told(self, listener: socket.socket) -> Ended:
        """Listen, load, serve, drain."""
        server = _server(self._app, self._place, self._log)
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        began = time.perf_counter()
        self._log.event("listening", url=url, models=list(self._repository.names()))
        if not is_loopback(host):
            self._log.event("warning", message="other machines reach this server, which asks nobody who they are")
        loading = asyncio.create_task(self._load(server, url))
        try:
            await server.serve(sockets=[listener, *(listener.dup() for _ in range(_ACCEPTS - 1))])
        finally:
            self._log.event("ending", url=url)
            await loading
            await asyncio.to_thread(self._repository.close)
        if self._refused is not None:
            raise self._refused
        return Ended(url, round(time.perf_counter() - began, 3), server.server_state.total_requests)

    async def _load(self, server: Any, url: str) -> None:
        try:
            await asyncio.to_thread(self._repository.load)
        except DeploykitError as error:
            self._refused = error
            self._log.event("refused_artifact", error=error.message)
            server.should_exit = True
            return
        except BaseException:
            server.should_exit = True
            raise
        self._repository.watch(self._place.poll_s)
        self._log.event("ready", url=url)


def _server(app: Any, place: Listening, log: Log) -> Any:
    import uvicorn

    from deploykit_serving.connection import Connection

    class Server(uvicorn.Server):  # type: ignore[misc]  # untyped where the lint environment runs
        """Ends with its own exit code: uvicorn's raises the signal once more."""

        should_exit: bool
        force_exit: bool

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Drain; a second Ctrl-C does not wait for it."""
            del frame
            if self.should_exit and sig == signal.SIGINT:
                self.force_exit = True
            self.should_exit = True

    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [_Forwarded(log)], False
    logger.setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        http=functools.partial(Connection, headers_s=place.headers_s),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=place.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(place.drain_s)),
    )
    return Server(config)


class _Forwarded(logging.Handler):
    """What the HTTP library logs, as an event of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        facts = {"level": record.levelname.lower(), "message": record.getMessage()}
        self._log.event("http", **facts, **({"traceback": trace} if trace else {}))
