"""Peers of `serving.py`, each in a process of its own: the handlers that one writes first.

python benchmarks/serving_peers.py fastapi|fastapi-threads|ray ARTIFACT PORT

All read the same request (Open Inference Protocol v2 in JSON) and run the same session, with one thread.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import deploykit


def answer(session: Any, body: dict[str, Any]) -> dict[str, Any]:
    """The same answer as `deploykit serve` gives, without a check of anything."""
    feeds = {
        each["name"]: np.array(each["data"], np.dtype(spec.dtype)).reshape(each["shape"])
        for each, spec in zip(body["inputs"], session.inputs, strict=True)
    }
    outputs = session.run(feeds)
    return {
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
            for name, array in outputs.items()
        ]
    }


def fastapi(path: str, port: int, *, threads: bool) -> None:
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()
    session = deploykit.load(path).open(threads=1)

    if threads:

        @app.post("/v2/models/{name}/infer")
        def infer_on_a_thread(name: str, body: dict[str, Any]) -> dict[str, Any]:
            return answer(session, body)
    else:

        @app.post("/v2/models/{name}/infer")
        async def infer(name: str, body: dict[str, Any]) -> dict[str, Any]:
            return answer(session, body)

    config = uvicorn.Config(app, port=port, access_log=False, log_level="warning")
    server = uvicorn.Server(config)
    started = server.startup

    async def startup(sockets: Any = None) -> None:
        await started(sockets)
        print(json.dumps({"event": "ready", "url": f"http://127.0.0.1:{port}"}), file=sys.stderr, flush=True)

    server.startup = startup  # type: ignore[method-assign]
    server.run()


def ray(path: str, port: int) -> None:
    import time

    import ray as ray_core
    from ray import serve

    ray_core.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    @serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
    class Replica:
        def __init__(self, folder: str) -> None:
            self.session = deploykit.load(folder).open(threads=1)

        async def __call__(self, request: Any) -> Any:
            return answer(self.session, await request.json())

    serve.run(Replica.bind(path), route_prefix="/")
    print(json.dumps({"event": "ready", "url": f"http://127.0.0.1:{port}"}), file=sys.stderr, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    kind, folder, place = sys.argv[1:]
    if kind == "ray":
        ray(folder, int(place))
    else:
        fastapi(folder, int(place), threads=kind == "fastapi-threads")
