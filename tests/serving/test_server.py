"""A server as clients meet it: real processes, real sockets, real artifacts."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from speaking import expected, started, tensor, values, words

import deploykit
from deploykit.contract.errors import UsageError
from deploykit_serving.models import Served, version_order

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn

TOKENS = np.array([[1, 2, 3, 4]])


def exported(model: torch.nn.Module, output: Path) -> None:
    deploykit.export(model, "x86-cpu", "fp32", example_inputs=(torch.from_numpy(TOKENS),), dynamic_batch=True,
                     output=output, profile=False, progress=False)  # fmt: skip


# -- what a running server tells --------------------------------------------------------------------------------


def test_health_and_metadata(shared, artifacts) -> None:
    assert shared.ask("GET", "/v2/health/live").document == {"live": True}
    assert shared.ask("GET", "/v2/health/ready").document == {"ready": True}
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/words/ready"):
        head = shared.ask("HEAD", path)
        assert head.status == 200 and head.body == b""
    assert "binary_tensor_data" in shared.ask("GET", "/v2").document["extensions"]
    found = shared.ask("GET", "/v2/models/words").document
    assert found["versions"] == ["9", "10"], "sorted as numbers"
    assert found["inputs"] == [{"name": "tokens", "datatype": "INT64", "shape": [-1, 4]}]
    assert found["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}]
    assert shared.ask("GET", "/v2/models/fixed").document["inputs"][0]["shape"] == [1, 3, 8, 8]


def test_an_answer_is_what_the_artifact_computes(shared, artifacts) -> None:
    reply = shared.infer("words", words(id="mine"))
    assert reply.status == 200 and reply.document["id"] == "mine"
    assert reply.document["model_version"] == "10", "the newest where none is named"
    assert np.array_equal(values(reply), expected(artifacts.words, tokens=TOKENS))
    old = shared.ask("POST", "/v2/models/words/versions/9/infer", words())
    assert old.document["model_version"] == "9"


def test_binary_both_ways(shared, artifacts) -> None:
    image = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    given = {
        "name": "input",
        "shape": [2, 3, 8, 8],
        "datatype": "FP32",
        "parameters": {"binary_data_size": image.nbytes},
    }
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    reply = shared.infer("images", head + image.tobytes(),
                         headers={"Inference-Header-Content-Length": str(len(head))})  # fmt: skip
    assert reply.status == 200 and reply.headers["content-type"] == "application/octet-stream"
    got = np.frombuffer(reply.body[int(reply.headers["inference-header-content-length"]) :], np.float32).reshape(2, 5)
    each = [expected(artifacts.images, input=image[i : i + 1]) for i in range(2)]
    assert np.array_equal(got, np.concatenate(each)), "a batch of one: the request was cut and joined"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/none", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("POST", "/v2/models/words/versions/8/infer", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/words/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("POST", "/v2/models/..%2F..%2Fetc/infer", 404),
    ],
)
def test_what_is_not_there_is_told_in_json(shared, method: str, path: str, status: int) -> None:
    reply = shared.ask(method, path, words() if method == "POST" else None)
    assert reply.status == status and reply.error


def test_a_run_that_fails_is_told_and_counted(shared) -> None:
    reply = shared.infer("words", words([1, 2, 3, 999]))
    assert reply.status == 500 and "999" in reply.error
    assert shared.figures()['deploykit_requests_refused_total{reason="run_failed",status="500"}'] >= 1


def test_a_request_of_more_rows_than_the_queue_is_malformed(shared) -> None:
    reply = shared.infer("words", words(*[[1, 2, 3, 4]] * 65))
    assert reply.status == 400 and reply.error.startswith("inputs[0].shape")


def test_metrics_name_what_is_there_and_what_is_not(shared) -> None:
    shared.infer("words", words())
    found = shared.figures()
    own = 'model="words",version="10"'
    assert found[f"deploykit_requests_answered_total{{{own}}}"] >= 1
    assert found[f'deploykit_request_seconds_bucket{{le="+Inf",{own}}}'] >= 1
    assert found[f"deploykit_queue_rows_bound{{{own}}}"] == 64
    assert any(name.startswith("deploykit_process_resident_bytes") and value > 1e6 for name, value in found.items())
    assert any(name.startswith("deploykit_source_absent") for name in found) or any("energy" in name for name in found)


def test_requests_are_logged_as_json(shared) -> None:
    shared.infer("words", words(id="logged"))
    shared.ask("GET", "/v2/health/live")
    lines = [line for line in shared.events("request") if line["id"] == "logged"]
    assert lines and {"queued_ms", "run_ms", "total_ms", "batch_rows"} <= lines[0].keys()
    assert not shared.plain, "everything on standard error is JSON"


# -- bodies and connections -------------------------------------------------------------------------------------


def spoken(port: int, text: bytes, *, seconds: float = 20.0) -> bytes:
    """Everything that the server says until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
        link.sendall(text)
        found = b""
        while chunk := link.recv(65536):
            found += chunk
        return found


def head(*lines: str, path: str = "/v2/models/words/infer") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: a", *lines, "", ""]).encode()


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read(shared) -> None:
    found = spoken(shared.port, head("content-length: 10000000"))
    assert found.startswith(b"HTTP/1.1 413") and b"connection: close" in found
    sent = shared.ask("POST", "/v2/models/words/infer", b"x" * 3_000_000)
    assert sent.status == 413 and "204800" in sent.error, "a client that sends on can read why"
    expecting = spoken(shared.port, head("content-length: 10000000", "expect: 100-continue"))
    assert expecting.startswith(b"HTTP/1.1 413"), "and is not told to continue"


def test_a_chunked_body_is_counted_while_it_comes(shared) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    found = spoken(shared.port, head("transfer-encoding: chunked") + chunk * 5 + b"0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413")
    whole = json.dumps(words()).encode()
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (whole[:20], whole[20:]))
    good = spoken(shared.port, head("transfer-encoding: chunked", "connection: close") + pieces + b"0\r\n\r\n")
    assert good.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "line", ["content-length: -5", "content-length: 1e3", "content-length: 5\r\ncontent-length: 6"]
)
def test_lengths_that_are_none_are_refused(shared, line: str) -> None:
    assert spoken(shared.port, head(line) + b"hello").startswith(b"HTTP/1.1 400")


def test_encoded_bodies_are_refused(shared) -> None:
    reply = shared.ask("POST", "/v2/models/words/infer", b"x", {"Content-Encoding": "gzip"})
    assert reply.status == 415


def test_one_connection_takes_many_requests(shared) -> None:
    body = json.dumps(words()).encode()
    once = head(f"content-length: {len(body)}") + body
    last = head(f"content-length: {len(body)}", "connection: close") + body
    found = spoken(shared.port, once + once + last)
    assert found.count(b"HTTP/1.1 200") == 3, "pipelined, too"


def test_a_client_that_leaves_costs_nothing(shared) -> None:
    body = json.dumps(words()).encode()
    for sent in (head(f"content-length: {len(body)}"), head(f"content-length: {len(body)}") + body, b"POST /v2"):
        with socket.create_connection(("127.0.0.1", shared.port)) as link:
            link.sendall(sent)
    assert shared.infer("words", words()).status == 200


# -- queues, deadlines, batches ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def waiting(artifacts):
    """Batches that wait for eight rows, in a queue of four: what comes stays until its deadline."""
    more = ("--max-batch", 8, "--max-wait-ms", 60_000, "--max-queue", 4, "--deadline-ms", 20_000)
    with started(artifacts.words, *more) as server:
        yield server


def test_a_deadline_is_kept_and_its_room_is_given_back(waiting) -> None:
    late = waiting.infer("words", words(parameters={"timeout": 50_000}))
    assert late.status == 504
    assert waiting.figures()['deploykit_queue_rows{model="words",version="1"}'] == 0


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(waiting) -> None:
    ask = {"parameters": {"timeout": 6_000_000}}
    with ThreadPoolExecutor(4) as pool:
        held = [pool.submit(waiting.infer, "words", words(**ask)) for _ in range(4)]
        waiting.until_figure('deploykit_queue_rows{model="words",version="1"}', 4)
        reply = waiting.infer("words", words())
        assert reply.status == 503 and int(reply.headers["retry-after"]) >= 1
        assert [one.result().status for one in held] == [504] * 4
    assert waiting.figures()['deploykit_queue_rows_peak{model="words",version="1"}'] == 4


def test_a_client_that_leaves_gives_its_room_back(waiting) -> None:
    body = json.dumps(words()).encode()
    with socket.create_connection(("127.0.0.1", waiting.port)) as link:
        link.sendall(head(f"content-length: {len(body)}") + body)
        waiting.until_figure('deploykit_queue_rows{model="words",version="1"}', 1)
    waiting.until_figure('deploykit_queue_rows{model="words",version="1"}', 0)


def test_neighbours_of_a_bad_request_are_answered(artifacts) -> None:
    with started(artifacts.words, "--max-batch", 4, "--max-wait-ms", 20_000) as server, ThreadPoolExecutor(4) as pool:
        rows = [[1, 2, 3, 4], [5, 6, 7, 999], [8, 9, 10, 11], [3, 3, 3, 3]]
        replies = list(pool.map(lambda row: server.infer("words", words(row)), rows))
        assert [reply.status for reply in replies] == [200, 500, 200, 200]
        for row, reply in zip(rows, replies, strict=True):
            if reply.status == 200:
                want = expected(artifacts.words, tokens=np.array([row]))
                np.testing.assert_allclose(values(reply), want, rtol=1e-5)  # a batch may sum in another order
        batches = [line["batch_rows"] for line in server.events("request")]
        assert batches == [1, 1, 1], "after the batch failed, each ran by itself"


def test_slow_headers_do_not_hold_a_connection(artifacts) -> None:
    from deploykit_serving.logs import Log
    from deploykit_serving.server import Listening, serve
    from deploykit_serving.settings import Settings

    class Lines:
        def __init__(self) -> None:
            self.port = 0
            self.ready = threading.Event()

        def write(self, line: bytes) -> None:
            event = json.loads(line)
            if event["event"] == "listening":
                self.port = int(event["url"].rpartition(":")[2])
            if event["event"] == "ready":
                self.ready.set()

        def flush(self) -> None:
            """Nothing is kept."""

    lines = Lines()
    ended: list[object] = []

    def run() -> None:
        place = Listening(port=0, headers_s=0.3)
        ended.append(serve([Served.parse(str(artifacts.words))], Settings(), place, log=Log(lines)))  # type: ignore[arg-type]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert lines.ready.wait(60)
    assert spoken(lines.port, b"").startswith(b"HTTP/1.1 408")
    assert spoken(lines.port, b"POST /v2/models/words/infer HTTP/1.1\r\nhost:").startswith(b"HTTP/1.1 408")


def test_a_deadline_that_is_over_when_the_body_is_read_is_kept(shared) -> None:
    for _ in range(5):
        shared.infer("words", words())
    assert shared.infer("words", words(parameters={"timeout": 1})).status == 504


# -- starting, ending, replacing --------------------------------------------------------------------------------


def test_on_sigterm_what_has_begun_is_answered(artifacts) -> None:
    with started(artifacts.words, "--max-batch", 8, "--max-wait-ms", 4000) as server, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(server.infer, "words", words())
        server.until_figure('deploykit_queue_rows{model="words",version="1"}', 1)
        assert server.end(with_signal=signal.SIGTERM) == 0
        assert reply.result().status == 200


def test_it_is_bound_to_this_machine(shared) -> None:
    own = {line["url"] for line in shared.events("listening")}
    assert own == {f"http://127.0.0.1:{shared.port}"} and not shared.events("warning")


@pytest.mark.parametrize("damage", ["flipped", "cut", "golden", "gone"])
def test_a_damaged_artifact_is_refused(artifacts, tmp_path, damage: str) -> None:
    folder = tmp_path / "words"
    shutil.copytree(artifacts.words, folder)
    model = folder / "model.onnx"
    data = bytearray(model.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        model.write_bytes(data)
    elif damage == "cut":
        model.write_bytes(data[:-1])
    elif damage == "golden":
        (folder / "golden.safetensors").unlink()
    else:
        shutil.rmtree(folder)
    with started(folder, ready=False) as server:
        assert server.end() == 9 if server.process.wait(60) else False


def test_an_artifact_that_computes_something_else_is_refused(artifacts, tmp_path) -> None:
    """Whole, with hashes that fit, and with golden outputs that are another model's."""
    import hashlib

    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "words"
    shutil.copytree(artifacts.words, folder)
    golden = folder / "golden.safetensors"
    save_file({k: v * 2 if k.startswith("output") else v for k, v in load_file(golden).items()}, golden)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == golden.name:
            entry.update(size=golden.stat().st_size, sha256=hashlib.sha256(golden.read_bytes()).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with started(folder, ready=False) as server:
        assert server.process.wait(60) == 6
    assert server.events("listening") and not server.events("ready")


def test_a_replaced_artifact_is_taken_whole_and_a_bad_one_is_not(artifacts, tmp_path) -> None:
    folder = tmp_path / "words"
    shutil.copytree(artifacts.words, folder)
    other = nn.Sequential(nn.Embedding(16, 8), nn.Flatten(), nn.Linear(32, 3)).eval()
    stop, statuses = threading.Event(), []

    with started(f"words={folder}") as server:

        def client() -> None:
            while not stop.is_set():
                statuses.append(server.infer("words", {"inputs": [tensor(TOKENS, name)]}).status)

        name = "tokens"
        thread = threading.Thread(target=client)
        thread.start()
        try:
            exported(WordsLike(other), folder)
            server.wait_for("model_replaced")
        finally:
            stop.set()
            thread.join()
        assert statuses and set(statuses) == {200}, "nothing was refused meanwhile"
        want = expected(folder, tokens=TOKENS)
        assert np.array_equal(values(server.infer("words", words())), want)
        (folder / "model.onnx").write_bytes(b"no model")
        manifest = folder / "manifest.json"
        manifest.write_bytes(manifest.read_bytes())  # looks new
        refused = server.wait_for("reload_refused")
        assert "model.onnx" in refused["error"]
        assert np.array_equal(values(server.infer("words", words())), want), "the last good one goes on"
        shutil.rmtree(folder)
        server.wait_for("artifact_gone")
        assert server.infer("words", words()).status == 200
        assert server.figures()['deploykit_models_loaded_total{model="words",outcome="replaced",version="1"}'] == 1


def test_one_that_is_copied_over_another_is_taken_when_all_of_it_is_there(artifacts, tmp_path) -> None:
    folder = tmp_path / "net"
    shutil.copytree(artifacts.words, folder)
    names = sorted(path.name for path in artifacts.floats.iterdir())
    assert names.index("manifest.json") < names.index("model.onnx"), "as `cp` goes through them"
    with started(folder) as server:
        for name in names:
            shutil.copyfile(artifacts.floats / name, folder / name)
            if name == "manifest.json":
                server.wait_for("reload_refused")
        server.wait_for("model_replaced")
        assert server.ask("GET", "/v2/models/net").document["inputs"][0]["name"] == "input"


def test_a_defect_while_one_is_taken_does_not_end_the_watch(artifacts, tmp_path, monkeypatch) -> None:
    from deploykit_serving.models import Model, Repository
    from deploykit_serving.settings import Settings

    folder, told = tmp_path / "net", []
    shutil.copytree(artifacts.words, folder)
    repository = Repository([Served.parse(str(folder))], Settings(), event=lambda name, **facts: told.append(name))
    repository.load()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Model, "open", lambda *_: 1 / 0)
            (folder / "manifest.json").write_bytes((artifacts.floats / "manifest.json").read_bytes())
            repository.refresh()
        shutil.copytree(artifacts.floats, folder, dirs_exist_ok=True)
        repository.refresh()
    finally:
        repository.close()
    assert told == ["model_ready", "reload_refused", "model_replaced"]


class WordsLike(nn.Module):
    """Another model with the input and output of the first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.inner(tokens)


def test_a_taken_port_is_told(artifacts, shared, capfd) -> None:
    from deploykit.cli import main

    assert main(["serve", str(artifacts.words), "--port", str(shared.port)]) == 2
    assert "--port 0" in capfd.readouterr().err


# -- what is asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "version"), [("a/b/net", "net", "1"), ("x=a/b", "x", "1"), ("x:1.2=a/b", "x", "1.2")]
)
def test_artifacts_are_named(text: str, name: str, version: str) -> None:
    found = Served.parse(text)
    assert (found.name, found.version) == (name, version)


@pytest.mark.parametrize("text", ["a b=c", "x:/=c", "ünd=c", f"{'a' * 200}=c", "."])
def test_names_that_no_url_has_are_refused(text: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "no name").mkdir()
    monkeypatch.chdir(tmp_path / "no name")
    with pytest.raises(UsageError, match="cannot be the"):
        Served.parse(text)


def test_one_name_and_version_is_one_artifact(artifacts, capfd) -> None:
    from deploykit.cli import main

    assert main(["serve", str(artifacts.words), f"words={artifacts.words}", "--port", "0"]) == 2
    assert "two artifacts" in capfd.readouterr().err


def test_versions_are_sorted_by_their_numbers() -> None:
    given = ["10", "9", "1.10", "1.9", "v2", "v10", "2024-01"]
    assert sorted(given, key=version_order) == ["1.9", "1.10", "9", "10", "2024-01", "v2", "v10"]


@pytest.mark.parametrize(
    ("arguments", "words_of_error"),
    [
        (("--max-batch", "0"), "max_batch"),
        (("--instances", "0"), "instances"),
        (("--max-queue", "-1"), "max_queue"),
        (("--max-body", "many"), "--max-body"),
        (("--settings", "nothing.json"), "nothing.json"),
        (("--parity-share", "2"), "--parity-share"),
    ],
)
def test_settings_out_of_range_are_usage_errors(artifacts, capfd, arguments, words_of_error: str) -> None:
    from deploykit.cli import main

    assert main(["serve", str(artifacts.words), *arguments]) == 2
    assert words_of_error in capfd.readouterr().err


def test_a_fixed_batch_axis_is_not_batched(artifacts) -> None:
    with started(artifacts.fixed, "--max-batch", 4, ready=False) as server:
        assert server.process.wait(60) == 2
    assert any("--dynamic-batch" in line for line in server.plain)


def test_drift_compares_a_share_with_the_float_build(artifacts) -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    with started(artifacts.images, "--baseline", artifacts.floats, "--parity-share", 1) as server:
        assert server.infer("images", {"inputs": [tensor(image, "input", "FP32")]}).status == 200
        server.until_figure('deploykit_drift_sqnr_db_count{model="images",version="1"}', 1)
        found = server.figures()
        assert found['deploykit_drift_sqnr_db_sum{model="images",version="1"}'] > 10
