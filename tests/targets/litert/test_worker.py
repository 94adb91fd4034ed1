"""The converter's process: reused, isolated, gone with its parent; and the graph's way into it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.places import process as child
from deploykit.plugin.artifact import Artifact
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_targets.litert import convert_child
from deploykit_targets.litert import worker as worker_module
from deploykit_targets.litert.float_files import FloatFiles, has
from deploykit_targets.litert.worker import Request, Worker, worker

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
needs_converter = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")


def export(precision: str, output: Path, model: str = "mlp") -> Artifact:
    module, example_inputs = models.ZOO[model]()
    return deploykit.export(
        module,
        "android",
        precision,
        example_inputs=example_inputs,
        calibration=batches(example_inputs) if precision == "int8" else None,
        output=output,
        profile=False,
        progress=False,
    )


@pytest.fixture
def fresh() -> Iterator[Worker]:
    """A process of its own."""
    own = Worker()
    yield own
    own.close()


def request(destination: Path, write: Any = lambda _: None) -> Request:
    return Request({"float_key": None, "static": False}, write, {}, destination)


@needs_converter
def test_exports_share_one_process_and_one_float_file(tmp_path: Path) -> None:
    first = export("fp32", tmp_path / "fp32")
    process = worker().process_id
    log = (first.path / "convert.log").read_text(encoding="utf-8")
    second = export("fp16", tmp_path / "fp16")
    assert worker().process_id == process is not None
    assert log.strip() in (second.path / "convert.log").read_text(encoding="utf-8")
    assert first.entry.read_bytes() != second.entry.read_bytes()


@needs_converter
def test_a_used_process_writes_the_bytes_of_a_fresh_one(tmp_path: Path) -> None:
    worker().close()
    fresh = {precision: export(precision, tmp_path / f"{precision}-1") for precision in ("int8", "fp32")}
    export("fp32", tmp_path / "other", model="two_inputs_dict_output")
    used = {precision: export(precision, tmp_path / f"{precision}-2") for precision in ("int8", "fp32")}
    for precision, artifact in used.items():
        assert artifact.entry.read_bytes() == fresh[precision].entry.read_bytes()


@needs_converter
def test_after_an_error_the_next_export_gets_a_fresh_process(tmp_path: Path) -> None:
    import torch

    class Decomposing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x)  # type: ignore[no-any-return]

    export("fp32", tmp_path / "before")
    process = worker().process_id
    with pytest.raises(deploykit.ConversionError):
        deploykit.export(
            Decomposing(),
            "android",
            "fp32",
            example_inputs=(torch.randn(3, 3),),
            output=tmp_path / "never",
            profile=False,
            progress=False,
        )
    assert worker().process_id is None
    export("fp32", tmp_path / "after")
    assert worker().process_id not in (None, process)


@needs_converter
def test_crash_is_an_error_that_names_the_signal(fresh: Worker, tmp_path: Path) -> None:
    fresh.start()
    process = fresh.process_id
    assert process is not None
    os.kill(process, signal.SIGSTOP)  # so that the request waits in the pipe while the process is killed
    threading.Timer(0.5, os.kill, (process, signal.SIGSEGV)).start()
    threading.Timer(0.5, os.kill, (process, signal.SIGCONT)).start()
    with pytest.raises(deploykit.ConversionError, match="SIGSEGV"):
        fresh.convert(request(tmp_path / "never"))
    assert fresh.process_id is None and not (tmp_path / "never").exists()


@needs_converter
def test_process_and_its_folder_end_with_the_parent() -> None:
    """The parent is killed: nothing of it can clean up."""
    script = (
        "import os\nfrom deploykit_targets.litert.worker import worker\nworker().start()\n"
        "running = worker()._running\nprint(running.process.pid, running.folder, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    process, folder = done.stdout.split()
    deadline = time.monotonic() + 120.0
    while Path(folder).exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(folder).exists(), f"process {process} is still there"


def test_idle_process_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_child, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(convert_child, "_LOOK_SECONDS", 0.01)
    reading, writing = os.pipe()
    kept = os.dup(0)
    try:
        os.dup2(reading, 0)
        assert not convert_child._is_asked()
    finally:
        os.dup2(kept, 0)
        for descriptor in (kept, reading, writing):
            os.close(descriptor)


def test_float_files_keep_what_was_used_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, log, files = tmp_path / "source", tmp_path / "log", FloatFiles(tmp_path, limit=25)
    for key in ("a", "b"):
        source.write_bytes(key.encode() * 10)
        log.write_text(f"said of {key}")
        files.keep(key, source, log)
    assert files.take("a", tmp_path / "copy") and (tmp_path / "copy").read_bytes() == b"a" * 10
    assert "said of a" in capsys.readouterr().out
    files.keep("c", source, log)
    assert has(tmp_path, "a") and has(tmp_path, "c") and not has(tmp_path, "b")
    assert not files.take("b", tmp_path / "copy")
    source.write_bytes(b"x" * 100)
    files.keep("large", source, log)
    assert [key for key in "abc" if has(tmp_path, key)] == [] and has(tmp_path, "large")


@needs_torch
@pytest.mark.parametrize("name", ["mobilenet_like", "transformer_encoder", "lstm_classifier", "unet_like"])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
def test_a_graph_computes_the_same_in_the_other_process(name: str, quantized: bool, tmp_path: Path) -> None:
    from deploykit.capture import capture
    from deploykit.pipeline.plan import make_request
    from deploykit_calibration.observe import calibrate
    from deploykit_calibration.placement import place
    from deploykit_targets.litert import program
    from deploykit_targets.litert.scheme import scheme_of

    module, example_inputs = models.ZOO[name]()
    captured = capture(module, example_inputs=example_inputs)
    graph_module = captured.graph_module
    if quantized:
        table = calibrate(captured, batches(example_inputs), progress=False)
        graph_module = place(captured, table, scheme_of(make_request("android"), captured)).graph_module
    last = [node.name for node in graph_module.graph.nodes if node.op == "call_function"][-1]
    program.save(tmp_path / "p", graph_module, captured.example_inputs, {last: "label"})
    loaded, examples = program.load(tmp_path / "p")
    for want, got in zip(graph_module(*captured.example_inputs), loaded(*examples), strict=True):
        np.testing.assert_array_equal(want.detach().numpy(), got.detach().numpy())
    stacks = {node.name: node.meta.get("nn_module_stack") for node in loaded.graph.nodes}
    assert stacks[last] == {"label": ("", "label")}
    assert [node.name for node in loaded.graph.nodes] == [node.name for node in graph_module.graph.nodes]


@needs_converter
def test_a_temporary_folder_that_was_cleaned_up_is_made_anew(fresh: Worker) -> None:
    fresh.start()
    running = fresh._running
    assert running is not None
    shutil.rmtree(running.folder)
    fresh.start()
    assert fresh.process_id not in (None, running.process.pid) and not running.process.alive


@needs_converter
def test_a_process_that_is_killed_from_outside_did_not_crash(fresh: Worker, tmp_path: Path) -> None:
    fresh.start()
    process = fresh.process_id
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (process, signal.SIGKILL)).start()
    with pytest.raises(deploykit.ConversionError, match="killed from outside") as caught:
        fresh.convert(request(tmp_path / "never"))
    assert "crashed" not in str(caught.value)


@needs_converter
def test_a_stopped_process_does_not_hang_the_export(fresh: Worker, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(child, "_STOPPED_S", 0.5)
    monkeypatch.setattr(child, "_LOOK_S", 0.1)
    fresh.start()
    process = fresh.process_id
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(deploykit.ConversionError, match="SIGSTOP"):
        fresh.convert(request(tmp_path / "never"))
    assert fresh.process_id is None


def test_junk_for_an_answer_is_an_error(monkeypatch: Any, tmp_path: Path) -> None:
    code = "import sys, time; sys.stdin.buffer.read(20); print('[1, 2', flush=True); time.sleep(60)"
    monkeypatch.setattr(worker_module, "module_command", lambda *_: [sys.executable, "-c", code])
    own = Worker()
    with pytest.raises(deploykit.ConversionError, match="no answer"):
        own.convert(request(tmp_path / "never"))
    own.close()
