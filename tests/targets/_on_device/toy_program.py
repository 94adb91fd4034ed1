"""A build program without a vendor: doubles its input. Behaves badly on request, as vendor libraries do."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import board  # copied beside this file by the tests

BuildError = board.BuildError


class Doubler:
    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        print("a library that prints to stdout")
        if feeds["x"][0, 0] == 13:
            os.kill(os.getpid(), signal.SIGSEGV)
        if feeds["x"][0, 0] == 14:
            raise BuildError(10, "the device went away", "plug it in again")
        return {"y": 2 * feeds["x"]}

    def profile(self, feeds: dict[str, Any], runs: int) -> dict[str, Any]:
        return {
            "latency_ms": board.percentiles([1.0, 2.0, 3.0]),
            "run_ms": [2.0] * runs,
            "throughput_per_s": 500.0,
            "warm_up": 1,
            "runs": runs,
            "device_memory_bytes": 7,
            "layers": {"conv1 + relu": 5.0, "fc": 9.0},
            "notes": ["made up"],
        }


def opened() -> Doubler:
    if (Path(__file__).parent / "no_driver").exists():
        raise BuildError(10, "there is no driver", "install it")
    return Doubler()


def main(options: Any) -> Any:
    if options.serve:
        board.serve(opened)
        return None
    if options.crash:
        os.kill(os.getpid(), signal.SIGSEGV)
    if options.hang:
        board.write_whole(Path(__file__).parent / "child.pid", str(os.getpid()).encode())
        time.sleep(120)
    if options.fail:
        raise BuildError(options.fail, "it was refused", "ask differently")
    if options.probe:
        return {"arch": "toy"}
    (options.out / "built.json").write_text(json.dumps({"level": options.level}))
    layers = [{"nodes": ["fc.matmul"], "precision": "int8", "device": "dla"}]
    return {"device": "a toy", "arch": "toy", "toy": "1.0", "layers": layers, "layers_source": "the toy"}


def parse(arguments: list[str], known: dict[str, Any]) -> Any:
    command = board.parser_of("toy")
    command.add_argument("--crash", action="store_true")
    command.add_argument("--hang", action="store_true")
    command.add_argument("--fail", type=int, default=0)
    command.add_argument("--level", type=int, default=known.get("level", 0))
    return command.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(board.run_cli(main, parse))
