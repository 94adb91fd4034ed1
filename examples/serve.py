"""An int8 model as a service: asked in JSON and with binary tensors, replaced while it serves, watched, ended.

    python examples/serve.py [--output FOLDER]        (extras onnxruntime and serve)

Starts `deploykit serve` on a free port of this machine, and asks it with the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

import deploykit


def network(seed: int) -> nn.Module:
    """A small CNN of random weights."""
    torch.manual_seed(seed)
    first = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU())
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def export(seed: int, folder: Path) -> deploykit.Artifact:
    """The network in int8; an artifact that is there is replaced, whole."""
    data: list[Tensor] = [torch.randn(8, 3, 32, 32) for _ in range(8)]
    return deploykit.export(
        network(seed), "x86-cpu", "int8", example_inputs=(data[0][:1],), calibration=data, dynamic_batch=True,
        output=folder, profile=False, min_placement=0,
    )  # fmt: skip


def ask(url: str, body: bytes | None = None, header_length: int | None = None) -> tuple[bytes, Any]:
    """One request: GET without a body, POST with one."""
    headers = {} if header_length is None else {"Inference-Header-Content-Length": str(header_length)}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        return answer.read(), answer.headers


def in_json(url: str, image: np.ndarray) -> np.ndarray:
    """Scores of images; numbers as text."""
    tensor = {"name": "input", "shape": image.shape, "datatype": "FP32", "data": image.ravel().tolist()}
    body, _ = ask(f"{url}/v2/models/net/infer", json.dumps({"inputs": [tensor]}).encode())
    (output,) = json.loads(body)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def in_binary(url: str, image: np.ndarray) -> np.ndarray:
    """The same with the tensors' own bytes behind the JSON."""
    size = {"binary_data_size": image.nbytes}
    tensor = {"name": "input", "shape": image.shape, "datatype": "FP32", "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body, headers = ask(f"{url}/v2/models/net/infer", head + image.tobytes(), len(head))
    start = int(headers["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:start])["outputs"]
    return np.frombuffer(body[start:], np.float32).reshape(output["shape"])


def until(log: IO[bytes], event: str) -> dict[str, Any]:
    """The next event of that name; the log is a JSON object a line."""
    for line in log:
        found: dict[str, Any] = json.loads(line)
        if found["event"] == event:
            return found
    raise SystemExit(f"the server ended before it told of {event}")


def main() -> None:
    """Export, serve, ask, replace, look at the figures, end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out"))
    folder = parser.parse_args().output / "net"
    export(0, folder)
    command = [sys.executable, "-m", "deploykit", "serve", f"net={folder}", "--port", "0", "--max-batch", "4"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert server.stderr is not None
    try:
        url = until(server.stderr, "ready")["url"]
        image = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
        first = in_json(url, image)
        print(f"JSON and binary tensors give the same: {np.array_equal(first, in_binary(url, image))}")
        replaced = export(1, folder)
        until(server.stderr, "model_replaced")
        with replaced.open(threads=1) as session:
            direct = session.run({"input": image})["output"]
        served = in_binary(url, image)
        print(f"after the artifact was replaced, answers are its own: {np.allclose(served, direct, atol=1e-5)}")
        text, _ = ask(f"{url}/metrics")
        print(*(line for line in text.decode().splitlines() if line.startswith("deploykit_requests_answered_total")))
    finally:
        server.terminate()
        print(f"ended with {server.wait()}")
        server.stderr.close()


if __name__ == "__main__":
    main()
