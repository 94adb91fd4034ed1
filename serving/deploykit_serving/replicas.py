"""The same server behind Ray Serve: replicas on several machines, each with its own batcher, queue and verification.

Ray routes HTTP requests to replicas and restarts them; what a replica answers is what `deploykit serve` answers. Every
node needs deploykit with the runtime, and the artifacts under the same path. A replica that refuses its artifact does
not become healthy, and `run` raises. Ray's own proxy stands before it, so each request costs more than with
`deploykit serve`: use it where one machine is not enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import UsageError
from deploykit.contract.optional import require
from deploykit_serving.models import Served, Trust
from deploykit_serving.settings import Settings

if TYPE_CHECKING:
    from deploykit_serving.app import Application


def replicated(
    artifacts: Sequence[str],
    settings: Settings | None = None,
    *,
    replicas: int = 1,
    cpus: float | None = None,
    trust: Trust | None = None,
) -> Any:
    """A Ray Serve application: `ray.serve.run(replicated(["net=out/net"]))`.

    Args:
        artifacts: as for `deploykit serve`: `FOLDER`, `NAME=FOLDER` or `NAME:VERSION=FOLDER`.
        settings: of each replica.
        replicas: how many.
        cpus: that Ray sets aside for each; None for instances x threads.
        trust: what vouches for the artifacts.
    Raises:
        MissingDependencyError: Ray Serve is not installed.
        UsageError: there is nothing to serve, or a number is out of its range.
    """
    serve = require("ray.serve", extra="serve-ray", purpose="serve replicas on several machines")
    if replicas < 1:
        raise UsageError(f"replicas must be from 1, not {replicas}")
    if not artifacts:
        raise UsageError("there is nothing to serve", hint='replicated(["NAME=FOLDER"])')
    chosen = (settings or Settings()).checked()
    served = [Served.parse(text) for text in artifacts]

    def build() -> Application:
        return _replica(served, chosen, trust)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="deploykit",
        num_replicas=replicas,
        # more than our own queue takes, so that it is ours that refuses, and says when to come again
        max_ongoing_requests=2 * chosen.max_queue + chosen.instances * chosen.max_batch,
        ray_actor_options={"num_cpus": chosen.instances * chosen.threads_each if cpus is None else cpus},
    )
    return deployment.bind()


def _replica(served: Sequence[Served], settings: Settings, trust: Trust | None) -> Application:
    """What runs in a replica: everything verified and open before Ray takes it for healthy."""
    from deploykit_serving.app import application
    from deploykit_serving.logs import Log
    from deploykit_serving.metrics import Metrics
    from deploykit_serving.models import Repository
    from deploykit_serving.monitor import Monitor

    metrics, log = Metrics(), Log(requests=False)
    repository = Repository(
        served,
        settings,
        watcher_of=lambda one: metrics.of(one.name, one.version),
        trust=trust,
        event=log.event,
    )
    metrics.watch(repository.models, Monitor.here().snapshot)
    repository.load()
    repository.watch()
    return application(repository, metrics, log)
