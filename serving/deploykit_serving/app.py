"""The HTTP application: Open Inference Protocol v2, health, metrics. Every answer but the metrics is JSON."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from deploykit._version import __version__
from deploykit.contract.optional import require
from deploykit_serving.drift import Drift
from deploykit_serving.endpoint import InferEndpoint, Receive, Scope, Send
from deploykit_serving.logs import Log
from deploykit_serving.metrics import Metrics
from deploykit_serving.models import Repository
from deploykit_serving.refusals import Refusal

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Handler = Callable[["Request"], Awaitable["Response"]]


_INFER = re.compile(r"/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?/infer")


class Application:
    """The ASGI application of a server: inferences go to their endpoint directly, past the routes of the rest."""

    def __init__(self, pages: Starlette, infer: InferEndpoint) -> None:
        self._pages = pages
        self._infer = infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        found = _INFER.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._pages(scope, receive, send)
        else:
            await self._infer({**scope, "path_params": found.groupdict()}, receive, send)


def application(repository: Repository, metrics: Metrics, log: Log, drift: Drift | None = None) -> Application:
    """The ASGI application over a repository, which may still be loading.

    Raises:
        MissingDependencyError: starlette is not installed.
    """
    require("starlette", extra="serve", purpose="serve artifacts")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    infer = InferEndpoint(repository, metrics, log, drift)
    pages = _Pages(repository, metrics)
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    routes = [
        *(Route(f"{path}/infer", infer, methods=["POST"]) for path in (model, version)),
        Route("/v2/health/live", pages.live),
        Route("/v2/health/ready", pages.ready),
        *(Route(f"{path}/ready", pages.model_ready) for path in (model, version)),
        *(Route(path, pages.model) for path in (model, version)),
        Route("/v2", pages.server),
        Route("/metrics", pages.metrics),
    ]
    handlers: Any = {Refusal: _refused, HTTPException: _http_error, Exception: _defect}
    return Application(Starlette(routes=routes, exception_handlers=handlers), infer)


class _Pages:
    """What is not an inference."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics

    async def live(self, _: Request) -> Response:
        """The process answers."""
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        """Every artifact is verified and open."""
        ready = self._repository.ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """One artifact is verified and open."""
        name = request.path_params["name"]
        try:
            self._repository.find(name, request.path_params.get("version"))
        except Refusal as refusal:
            if refusal.status == 404:
                raise
            return _json({"name": name, "ready": False}, 503)
        return _json({"name": name, "ready": True})

    async def model(self, request: Request) -> Response:
        """Inputs and outputs of a model."""
        name = request.path_params["name"]
        found = self._repository.find(name, request.path_params.get("version"))
        return _json(found.metadata(self._repository.versions(name)))

    async def server(self, _: Request) -> Response:
        """Name, version and extensions of the server."""
        extensions = ["binary_tensor_data", "schedule_policy(timeout)"]
        return _json({"name": "deploykit", "version": __version__, "extensions": extensions})

    async def metrics(self, _: Request) -> Response:
        """Figures for Prometheus; read on a thread, because sensors take their time."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import Response

        text, content_type = await run_in_threadpool(self._metrics.text)
        return Response(text, headers={"content-type": content_type})


def _json(document: Any, status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(document, status)


async def _refused(_: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    if not isinstance(error, Refusal):
        raise error
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    return JSONResponse({"error": error.message}, error.status, headers)


async def _http_error(_: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the form that the protocol gives errors."""
    from starlette.responses import JSONResponse

    return JSONResponse(
        {"error": getattr(error, "detail", "")}, getattr(error, "status_code", 500), getattr(error, "headers", None)
    )


async def _defect(_: Request, error: Exception) -> Response:
    return _json({"error": f"unexpected {type(error).__name__}; the server's log has it"}, 500)
