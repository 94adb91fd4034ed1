"""Places, with the toy toolchain: the same outputs everywhere, and what goes wrong there is an error here."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import deploykit
from deploykit.contract.errors import ArtifactError, DeviceError, MissingDependencyError, UsageError
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.requirements import Requirements
from deploykit.judge.profiling import Effort
from deploykit.places import Child, Here, Ssh, frames, memory
from deploykit.places.process import module_command

FEEDS = {"x": np.full((1, 4), 0.5, np.float32)}


@pytest.fixture
def artifact(toy: Any, toy_children: None, tmp_path: Path) -> Any:
    return toy.write_artifact(tmp_path / "art")


def expected(toy: Any) -> Any:
    return FEEDS["x"] @ toy.MATRIX


def test_here_and_in_a_child_the_same(toy: Any, artifact: Any) -> None:
    for place in (None, Here(), Child()):
        with artifact.open(place=place, threads=2) as session:
            assert np.array_equal(session.run(FEEDS)["output"], expected(toy)) and session.threads == 2
            assert len(session.times_ms(FEEDS, runs=3)) == 3
            assert [time.name for time in session.op_times(FEEDS, runs=1)] == ["matmul"]


def test_a_child_is_another_process_and_ends_with_its_session(artifact: Any) -> None:
    session = artifact.open(place=Child())
    pid = session._peer.process.pid
    assert pid != os.getpid() and session.peak_memory_bytes is None
    session.times_ms(FEEDS, runs=1)
    assert session.peak_memory_bytes >= 0
    session.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_crash_in_a_child_is_an_error(artifact: Any) -> None:
    with artifact.open(place=Child()) as session:
        os.kill(session._peer.process.pid, signal.SIGSEGV)
        with pytest.raises(DeviceError, match=r"the process of art was killed by signal 11 \(SIGSEGV\)"):
            session.run(FEEDS)
        with pytest.raises(DeviceError, match="SIGSEGV"):
            session.run(FEEDS)


def test_a_child_that_hangs_is_ended(artifact: Any) -> None:
    with artifact.open(place=Child()) as session:  # a busy machine may take seconds to open it
        session._peer.process._timeout_s = 2.0
        os.kill(session._peer.process.pid, signal.SIGSTOP)
        with pytest.raises(DeviceError, match=r"did not answer within 2 s"):
            session.run(FEEDS)


def test_errors_of_a_child_keep_their_types(toy: Any, artifact: Any) -> None:
    (artifact.path / "matrix.npy").unlink()
    with pytest.raises(ArtifactError):
        toy.Artifact(artifact.path, artifact.manifest).open(place=Child())


def test_wrong_inputs_are_refused_before_they_are_sent(artifact: Any) -> None:
    with artifact.open(place=Child()) as session:
        with pytest.raises(UsageError, match="wrong input names"):
            session.run({"y": FEEDS["x"]})
        assert session.run(FEEDS)


def test_memory_is_that_of_a_fresh_process(artifact: Any) -> None:
    found = memory.peak_memory_bytes(artifact)
    assert found is not None and 0 <= found < 1e9


def ask(*requests: frames.Frame, arguments: tuple[str, ...] = ()) -> list[frames.Frame]:
    """What a server answers to requests that come at once."""
    sent = b"".join(bytes(part) for request in requests for part in frames.encode(request))
    command = module_command("deploykit.places.serve", *arguments)
    done = subprocess.run(command, input=sent, capture_output=True, check=True, timeout=60)
    found, at = [], 0

    def receive(count: int) -> bytes:
        nonlocal at
        at += count
        return done.stdout[at - count : at]

    while at < len(done.stdout):
        found.append(frames.decode(receive))
    return found


def test_the_server_with_a_fixed_artifact(toy: Any, artifact: Any) -> None:
    """What it prints lands on standard error: the toy's session talks on standard output."""
    requests = [
        frames.Frame(frames.HELLO),
        frames.Frame(frames.OPEN, {"path": "/elsewhere"}),
        frames.Frame(frames.RUN, {}, FEEDS),
        frames.Frame(frames.PROFILE, {}, FEEDS, runs=2, op_runs=1),
        frames.Frame(99),
        frames.Frame(frames.RUN, {}, {"x": np.zeros((2, 2))}),
        frames.Frame(frames.CLOSE),
    ]
    hello, opened, run, profile, unknown, wrong = ask(*requests, arguments=(str(artifact.path),))
    assert hello.facts["version"] == deploykit.__version__ and hello.facts["host"]["cores"] >= 1
    assert opened.facts["threads"] >= 1
    assert np.array_equal(run.tensors["output"], expected(toy))
    assert profile.tensors["run_ms"].shape == (2,) and profile.facts["ops"] == [["matmul", "MatMul", "fc"]]
    assert unknown.kind == frames.ERROR and "not known here" in unknown.facts["message"]
    assert wrong.facts["type"] == "UsageError" and "dtype" in wrong.facts["message"]


def test_before_anything_is_open_there_is_nothing_to_run(toy_children: None) -> None:
    (answer,) = ask(frames.Frame(frames.RUN, {}, FEEDS))
    assert (answer.kind, answer.facts["type"]) == (frames.ERROR, "UsageError")


def test_a_server_does_not_outlive_the_one_that_asked(artifact: Any, tmp_path: Path) -> None:
    program = (
        "import sys, deploykit\nfrom deploykit.places import Child\n"
        "session = deploykit.load(sys.argv[1]).open(place=Child())\nprint(session._peer.process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program, str(artifact.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert started.stdin is not None and started.stdout is not None
    pid = int(started.stdout.readline())
    started.kill()
    started.wait()
    started.stdin.close()
    started.stdout.close()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")


# -- a board ------------------------------------------------------------------------------------------------


def test_a_board_gives_the_same_and_is_sent_nothing_twice(toy: Any, artifact: Any, stand_in: Any) -> None:
    for copies in (3, 3):  # matrix, golden data, manifest
        with artifact.open(place=Ssh("me@board")) as session:
            assert np.array_equal(session.run(FEEDS)["output"], expected(toy))
        assert stand_in.commands.count("dd bs") == copies
    assert sorted(path.name for path in stand_in.files) == ["golden.safetensors", "manifest.json", "matrix.npy"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in stand_in.files)


def test_on_board_is_the_same(artifact: Any, stand_in: Any) -> None:
    there = artifact.on_board("board")
    assert there.verify().max_abs == 0 and there.preflight().ok
    profile = there.plugin().profile(there, effort=Effort(seconds=0.02))
    assert profile.runs >= 20 and profile.op_times and profile.peak_memory_bytes is not None
    assert any("measured on board with its own clock" in note for note in profile.notes)
    assert there.plugin().evidence(there) is artifact.plugin().evidence(artifact) is not Evidence.EMULATOR


def test_nothing_is_contacted_before_it_is_needed(artifact: Any, stand_in: Any) -> None:
    artifact.on_board("board").plugin()
    assert stand_in.commands == ""


def test_a_file_that_changed_on_the_board_is_sent_again(toy: Any, artifact: Any, stand_in: Any) -> None:
    artifact.open(place=Ssh("board")).close()
    for path in stand_in.files:
        path.write_bytes(b"altered")
    with artifact.open(place=Ssh("board")) as session:
        assert np.array_equal(session.run(FEEDS)["output"], expected(toy))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unreachable", r"(?s)board lost its connection.*No route to host.*-> try: ssh -o BatchMode=yes board true"),
        ("cut", r"(?s)board cannot be reached, or the line was cut.*-> try: ssh"),
        ("damaged", r"(?s)arrived damaged on board; nothing was kept.*-> try again"),
        ("full", r"(?s)board refused a command.*No space left on device.*-> "),
        ("noisy", r"(?s)deploykit on board gave something that is no answer.*it begins with.*Welco.*-> "),
        ("noshell", r"(?s)deploykit on board ended with code 1: this account is for sftp only.*-> try: ssh"),
    ],
)
def test_what_goes_wrong_on_the_way(artifact: Any, stand_in: Any, fault: str, said: str) -> None:
    stand_in.have(fault)
    with pytest.raises(DeviceError, match=said):
        artifact.open(place=Ssh("board"))
    assert all(path.parent.name == "parts" for path in stand_in.files), "nothing that looks whole"
    stand_in.have("none")
    artifact.open(place=Ssh("board")).close()


def test_a_board_that_falls_silent(artifact: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_CHILD_TIMEOUT_S", "0.5")
    stand_in.have("silent")
    with pytest.raises(DeviceError, match=r"(?s)deploykit on board did not answer within 0\.5 s.*-> "):
        artifact.open(place=Ssh("board"))


def test_without_ssh(artifact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match="sudo apt-get install openssh-client"):
        artifact.open(place=Ssh("board"))


def test_a_board_without_deploykit(artifact: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_BOARD_PYTHON", "no-such-python")
    wanted = r'(?s)board has no deploykit.*on board: pip install "deploykit==.*"; or name.*DEPLOYKIT_BOARD_PYTHON'
    with pytest.raises(DeviceError, match=wanted):
        artifact.open(place=Ssh("board"))


@pytest.mark.parametrize("version", ["0.0.9", "99.0.0"])
def test_a_board_with_another_version(artifact: Any, stand_in: Any, version: str, tmp_path: Path) -> None:
    """A program that greets as that version would."""
    greeting = frames.encode(frames.Frame(frames.ANSWER, {"version": version}))
    python = _python(tmp_path, f"sys.stdin.buffer.read(20); sys.stdout.buffer.write({b''.join(greeting)!r})")
    with pytest.raises(
        DeviceError, match=rf"(?s)board has deploykit {version}, and this is .*-> on board: pip install"
    ):
        artifact.open(place=Ssh("board", python=python))


def test_a_board_with_another_protocol(artifact: Any, stand_in: Any, tmp_path: Path) -> None:
    python = _python(tmp_path, "sys.stdin.buffer.read(20); sys.stdout.buffer.write(b'dkpf' + bytes([9]) + bytes(15))")
    with pytest.raises(DeviceError, match=r"(?s)board speaks version 9 of the session protocol, and we speak 1.*-> "):
        artifact.open(place=Ssh("board", python=python))


def test_a_board_whose_deploykit_is_too_old_to_serve(artifact: Any, stand_in: Any, tmp_path: Path) -> None:
    python = _python(tmp_path, "sys.stderr.write('No module named deploykit.places'); sys.exit(70)")
    with pytest.raises(DeviceError, match=r"(?s)the deploykit on board cannot serve: No module.*-> on board: pip"):
        artifact.open(place=Ssh("board", python=python))


def test_what_the_board_lacks_is_found_there_and_before_anything_is_copied(
    toy: Any, toy_children: None, stand_in: Any, tmp_path: Path
) -> None:
    artifact = toy.write_artifact(tmp_path / "art", requirements=Requirements(arch=("riscv",)))
    with pytest.raises(DeviceError, match=r"(?s)art cannot run on board: it is code for riscv.*-> on board: run it on"):
        artifact.open(place=Ssh("board"))
    assert not artifact.on_board("board").preflight().ok and stand_in.files == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (9, "was killed by SIGKILL: by the system for lack of memory"),
        (4, "was killed by SIGILL: the CPU lacks an instruction"),
    ],
)
def test_a_board_that_ends_the_server(artifact: Any, stand_in: Any, number: int, said: str, tmp_path: Path) -> None:
    python = _python(tmp_path, f"sys.stdin.buffer.read(20); os.kill(os.getpid(), {number})")
    with pytest.raises(DeviceError, match=rf"(?s)deploykit on board {said}.*-> "):
        artifact.open(place=Ssh("board", python=python))


def test_a_line_that_is_cut_in_the_middle(artifact: Any, stand_in: Any) -> None:
    """As OpenSSH ends then: with 255."""
    stand_in.have("line")
    with artifact.open(place=Ssh("board")) as session:
        assert session.run(FEEDS)
        for process in psutil.Process(session._peer.process.pid).children(recursive=True):
            process.kill()
        with pytest.raises(DeviceError, match=r"(?s)deploykit on board lost its connection.*-> try: ssh"):
            session.run(FEEDS)


def test_too_little_memory_there(toy: Any, artifact: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python says of it, and what the system does (above)."""
    from deploykit.places.serve import Server

    def refuse(self: Any, request: Any) -> Any:
        raise MemoryError

    monkeypatch.setitem(Server._answers, frames.OPEN, refuse)
    answer = Server().answer(frames.Frame(frames.OPEN))
    assert answer.facts["message"] == "there is not enough memory for it" and answer.facts["hint"]


def _python(folder: Path, code: str) -> str:
    """A Python that has deploykit, and that does something else with it."""
    path = folder / "python"
    path.write_text(
        f'#!{sys.executable}\nimport os, sys\nif "find_spec" in sys.argv[2]: sys.exit(0)\n{code}\n', encoding="utf-8"
    )
    path.chmod(0o755)
    return str(path)


HOSTILE = ["", "-oProxyCommand=touch x", "two words", "a;b", "$(x)", "me@-oProxyCommand", "ssh://-F@x", "ssh://me@-Fx"]


@pytest.mark.parametrize("address", [*HOSTILE, "host\n", "ProxyCommand=x", "me@host -Fx", "-@host", "host/../x", "%h"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        Ssh(address)


@pytest.mark.parametrize(
    "address", ["pi", "pi@10.0.0.2", "me@pi.local", "ssh://pi@host:2222", "pi@[fe80::1%eth0]", "::1"]
)
def test_addresses(address: str) -> None:
    assert str(Ssh(address)) == address


def test_a_runtime_that_the_board_lacks(toy: Any, toy_children: None, stand_in: Any, tmp_path: Path) -> None:
    artifact = toy.write_artifact(tmp_path / "art", toolchain="absent", target="absent-board", device="absent-board")
    wanted = r"(?s)art cannot run on board: no-such-module is needed.*-> on board: pip install .*absent-runtime"
    with pytest.raises(DeviceError, match=wanted):
        artifact.open(place=Ssh("board"))
    assert stand_in.files == []


def test_a_float_build_is_measured_there_in_turns(toy: Any, artifact: Any, stand_in: Any) -> None:
    other = toy.write_artifact(artifact.path.with_name("float"), precision=Precision.FP32)
    target = artifact.on_board("board").plugin()
    profile = target.profile(artifact, baseline=("float", other), effort=Effort(seconds=0.02))
    assert profile.baseline == "float" and profile.worth_it > 0
    assert len(list((stand_in.folder / "home/.cache/deploykit").glob("*/manifest.json"))) == 2


def test_a_server_says_its_version_to_a_client_of_another(toy_children: None) -> None:
    request = bytearray(b"".join(map(bytes, frames.encode(frames.Frame(frames.HELLO)))))
    request[4] = 9
    command = module_command("deploykit.places.serve")
    done = subprocess.run(command, input=bytes(request), capture_output=True, check=True, timeout=60)
    assert done.stdout[:5] == b"dkpf\x01" and done.stdout[5] == frames.ERROR


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(b",f4,", (4,)), (b"<f4,<f4", (4,)), (b"O", (4,)), (b"<V4", (1,)), (b"<f4", (0, 1 << 63)), (b"<f9999", (0,))],
)
def test_a_tensor_that_numpy_would_stumble_over_is_no_frame(dtype, shape):
    size = 0 if 0 in shape else 4
    tensor = struct.pack("<HBBQ", 1, len(dtype), len(shape), size) + b"x" + dtype
    tensor += b"".join(struct.pack("<Q", axis) for axis in shape) + bytes(size)
    head = struct.pack("<4sBBHIII", frames.MAGIC, frames.VERSION, frames.ANSWER, 1, 0, 0, 0)
    stream = io.BytesIO(head + tensor)
    with pytest.raises(ValueError, match="a tensor 'x'"):
        frames.decode(stream.read)


def test_an_object_that_is_nested_too_deep_is_no_frame():
    words = b"[" * 200_000
    head = struct.pack("<4sBBHIII", frames.MAGIC, frames.VERSION, frames.ANSWER, 0, 0, 0, len(words))
    with pytest.raises(ValueError, match="nested too deep"):
        frames.decode(io.BytesIO(head + words).read)
