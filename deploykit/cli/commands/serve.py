"""`deploykit serve`: artifacts as a service, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.output import Answer, note
from deploykit.cli.parameters import AllowNative, Debug, Json, Key
from deploykit.contract.errors import UsageError

if TYPE_CHECKING:
    from deploykit_serving.models import Served
    from deploykit_serving.settings import Settings


def serve(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT...", help="Folder of an exported artifact, or NAME=FOLDER, or NAME:VERSION=FOLDER."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; this machine alone if not given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    instances: Annotated[int | None, typer.Option(help="Runs beside each other.  [default: 1]")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the runtime in each.  [default: the usable cores / instances]")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Rows in a run.  [default: 1]")] = None,
    max_wait_ms: Annotated[
        float | None,
        typer.Option(help="How long a row waits for others.  [default: 2 where --max-batch is above 1]"),
    ] = None,
    max_queue: Annotated[int | None, typer.Option(help="Rows that may wait.  [default: 64]")] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Deadline of requests that name none.  [default: 30000]")
    ] = None,
    max_body: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest body of a request, such as 32M.  [default: 32M]")
    ] = None,
    settings: Annotated[
        str | None, typer.Option(metavar="FILE", help="Take these, as `tune-serving` writes them; options go before.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="ARTIFACT", help="A float build: compare a share of the answers with it.")
    ] = None,
    parity_share: Annotated[float, typer.Option(help="Share of the requests that --baseline runs again.")] = 0.01,
    drain: Annotated[float, typer.Option("--drain-s", min=1.0, help="Time for what has begun, on SIGTERM.")] = 30.0,
    log_requests: Annotated[bool, typer.Option(help="Log each request.")] = True,
    key: Key = None,
    allow_native: AllowNative = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Serve artifacts over HTTP (Open Inference Protocol v2).

    Until SIGTERM or Ctrl-C; what has begun is then answered. Artifacts are verified first, and taken anew when they
    are replaced. Logs are JSON lines on standard error, figures for Prometheus are at /metrics.
    With --key, each must be signed by it, and so must be what replaces it.
    """
    from deploykit_serving.logs import Log
    from deploykit_serving.models import Served, Trust
    from deploykit_serving.server import Baseline, Listening
    from deploykit_serving.server import serve as run_server
    from deploykit_serving.sizes import parse_size

    served = [Served.parse(text) for text in artifacts]
    chosen = _settings(settings, served).changed(
        instances=instances,
        threads=threads,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        deadline_ms=deadline_ms,
        max_body_bytes=None if max_body is None else parse_size("--max-body", max_body),
    )
    if not 0.0 < parity_share <= 1.0:
        raise UsageError(f"--parity-share must be above 0 and at most 1, not {parity_share:g}")
    ended = run_server(
        served,
        chosen,
        Listening(host=host, port=port, drain_s=drain),
        baseline=None if baseline is None else Baseline(Path(baseline), parity_share),
        trust=Trust(key, allow_native),
        log=Log(requests=log_requests),
    )
    document = {"url": ended.url, "seconds": ended.seconds, "requests": ended.requests}
    return Answer(document, [f"served {ended.requests} requests in {ended.seconds:.1f} s"])


def _settings(path: str | None, served: list[Served]) -> Settings:
    """The settings of a file, or the defaults; it is said where they were measured of another artifact."""
    from deploykit.artifact import manifest as layout
    from deploykit.artifact.storage import sha256_of
    from deploykit_serving.settings import Settings, read_settings

    if path is None:
        return Settings()
    tuned = read_settings(Path(path))
    for one in served:
        manifest = one.path / layout.MANIFEST_NAME
        if tuned.artifact and manifest.is_file() and sha256_of(manifest) != tuned.artifact:
            note(
                f"{path} was measured with another artifact than {one.path}; `deploykit tune-serving` measures this one"
            )
    return tuned.settings
