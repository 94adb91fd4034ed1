"""The same batcher behind Ray Serve; in a network of its own, because Ray listens on all interfaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from deploykit.contract.errors import MissingDependencyError

PROGRAM = """
import json, sys, urllib.request
from pathlib import Path
import ray
from ray import serve
from deploykit_serving.replicas import replicated
from deploykit_serving.settings import Settings

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
serve.start(http_options={"host": "127.0.0.1", "port": 18431})
serve.run(replicated([f"words={sys.argv[1]}"], Settings(max_queue=8, threads=1), replicas=2), route_prefix="/")

def ask(path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:18431{path}", body and json.dumps(body).encode())
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status, json.load(answer)

tensor = {"name": "tokens", "shape": [1, 4], "datatype": "INT64", "data": [1, 2, 3, 4]}
def refusal(*names, **how):
    try:
        replicated(names, **how)
    except Exception as error:
        return type(error).__name__

Path(sys.argv[2]).write_text(json.dumps([
    ask("/v2/health/ready"),
    ask("/v2/models/words/infer", {"inputs": [tensor], "id": "a"}),
    ask("/v2/models/words/infer", {"inputs": [{**tensor, "data": [1]}]}),
    ask("/v2/models/words/infer", {"inputs": [{**tensor, "shape": [9, 4], "data": [1] * 36}]}),
    [refusal("a", replicas=0), refusal()],
]))  # not printed: Ray prints, too, until it has ended
serve.shutdown()
"""


@pytest.mark.nightly
def test_replicas_answer_as_the_server_does(artifacts, tmp_path) -> None:
    if find_spec("ray") is None or find_spec("fastapi") is None:
        pytest.skip("Ray Serve is not installed")
    (tmp_path / "program.py").write_text(PROGRAM)
    alone = ["unshare", "--map-root-user", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    done = subprocess.run(
        [*alone, sys.executable, str(tmp_path / "program.py"), str(artifacts.words), str(tmp_path / "answers.json")],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    if "unshare" in done.stderr and done.returncode:
        pytest.skip(f"no network of its own here: {done.stderr.strip()[:100]}")
    answers = tmp_path / "answers.json"
    assert answers.exists(), done.stderr[-3000:]
    ready, answered, malformed, large, refused = json.loads(answers.read_text())
    assert ready == [200, {"ready": True}]
    assert answered[0] == 200 and answered[1]["id"] == "a"
    assert malformed[0] == 400 and malformed[1]["error"].startswith("inputs[0].data")
    assert large[0] == 400 and "8" in large[1]["error"], "the queue is ours"
    assert refused == ["UsageError", "UsageError"]


def test_without_ray_it_says_what_to_install(monkeypatch) -> None:
    from deploykit_serving.replicas import replicated

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(MissingDependencyError, match="serve-ray"):
        replicated(["a"])
