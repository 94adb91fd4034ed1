"""Children: what they import, and that every way of not answering ends the wait in words."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import deploykit
from deploykit.contract.errors import ConversionError, DeviceError
from deploykit.places import frames
from deploykit.places import process as child_module
from deploykit.places.process import Process, code_command, ending, import_path, module_command, time_limit

CANARY = "import pathlib, os\npathlib.Path(os.environ['CANARY']).write_text(__file__)\n"


def script(code: str, **settings) -> Process:
    return Process([sys.executable, "-c", code], what="the toy", **{"timeout_s": 20.0, **settings})


@pytest.fixture
def canaries(tmp_path, monkeypatch):
    """A working directory whose modules have the names of the standard library's, and tell when they are imported."""
    folder, told = tmp_path / "hostile", tmp_path / "told"
    folder.mkdir()
    for name in ("json", "resource", "runpy", "os", "numpy", "psutil", "argparse", "struct", "importlib"):
        (folder / f"{name}.py").write_text(CANARY)
    monkeypatch.setenv("CANARY", str(told))
    monkeypatch.chdir(folder)
    return told


@pytest.mark.parametrize("code", ["import json, resource, struct", "import numpy, json"])
def test_code_imports_nothing_of_the_working_directory(canaries, code, monkeypatch):
    for path in (None, "", ":", os.getcwd(), f"{os.pathsep}/nowhere"):
        if path is None:
            monkeypatch.delenv("PYTHONPATH", raising=False)
        else:
            monkeypatch.setenv("PYTHONPATH", path)
        subprocess.run(code_command(sys.executable, code), check=True, timeout=60)
    assert not canaries.exists()


def test_modules_import_nothing_of_the_working_directory(canaries, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.syspath_prepend(os.curdir)
    command = module_command("deploykit.places.serve", tmp_path)
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr  # it came as far as serving nobody
    assert not canaries.exists()


def test_the_command_line_imports_nothing_of_the_working_directory(canaries):
    Path("importlib.py").unlink()  # Python's own `-m` imports it before any code of ours
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(import_path("deploykit"))}
    done = subprocess.run(
        [sys.executable, "-m", "deploykit", "targets"], check=False, timeout=60, capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not canaries.exists()


def test_a_development_tree_in_the_working_directory_is_still_ours(monkeypatch):
    root = Path(deploykit.__file__).parents[1]
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    assert str(root) in import_path("deploykit.plugin.memory_probe")


def test_a_removed_working_directory(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = subprocess.run(code_command(sys.executable, "print(1)"), check=True, capture_output=True, timeout=60)
    assert done.stdout == b"1\n"
    subprocess.run(module_command("deploykit._version"), check=True, timeout=60)


def test_it_answers():
    child = script("import sys\nfor line in sys.stdin: sys.stdout.write(line.upper()); sys.stdout.flush()")
    with child.exchange():
        child.send(b"one\ntwo\n")
        assert (child.receive(4), child.receive(2), child.receive(2)) == (b"ONE\n", b"TW", b"O\n")
    assert child.alive
    child.close()
    assert not child.alive


def test_silence_ends_the_wait():
    child = script("import time; time.sleep(60)", timeout_s=0.2)
    with pytest.raises(DeviceError, match=r"the toy did not answer within 0\.2 s"), child.exchange():
        child.receive(1)
    with pytest.raises(DeviceError, match="did not answer"), child.exchange():  # it would answer the first question
        child.receive(1)
    child.close()


def test_a_process_that_does_not_read_ends_the_wait():
    child = script("import time; time.sleep(60)", timeout_s=0.2)
    with pytest.raises(DeviceError, match="did not answer"):
        child.send(b"x" * (8 << 20))
    child.close()


def test_a_stopped_process_ends_the_wait(monkeypatch):
    monkeypatch.setattr(child_module, "_STOPPED_S", 0.3)
    monkeypatch.setattr(child_module, "_LOOK_S", 0.1)
    child = script("input()", error=ConversionError)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ConversionError, match="SIGSTOP"), child.exchange():
        child.receive(1)
    child.close()
    child = script("input()", error=ConversionError)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ConversionError, match="SIGSTOP"):
        child.finish()
    child.close()


def test_a_process_that_goes_on_is_waited_for(monkeypatch):
    monkeypatch.setattr(child_module, "_LOOK_S", 0.05)
    child = script("import sys\nprint('ready', flush=True)\ninput()\nprint('done', flush=True)")
    assert child.receive(6) == b"ready\n"
    os.kill(child.pid, signal.SIGSTOP)
    child.send(b"\n")
    threading.Timer(0.4, os.kill, (child.pid, signal.SIGCONT)).start()
    assert child.receive(5) == b"done\n"
    child.close()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "killed from outside (SIGKILL): by the system for lack of memory, or by somebody"),
        (signal.SIGTERM, "killed from outside (SIGTERM)"),
        (signal.SIGSEGV, "killed by signal 11 (SIGSEGV)"),
        (signal.SIGILL, "killed by signal 4 (SIGILL)"),
    ],
)
def test_an_end_is_named(number, words):
    child = script(f"import os; os.kill(os.getpid(), {int(number)})")
    with pytest.raises(DeviceError) as caught, child.exchange():
        child.receive(1)
    assert words in str(caught.value)
    child.close()


def test_an_end_in_the_middle_of_an_answer_has_its_last_words():
    child = script("import sys; sys.stdout.write('ab'); sys.stdout.flush(); sys.exit('no memory left')")
    with pytest.raises(DeviceError, match=r"ended with code 1\n.*no memory left"), child.exchange():
        child.receive(4)
    child.close()


@pytest.mark.parametrize("junk", [b"\xff\xfe\n--", b"x" * (2 << 20), b"not JSON\n", b"dkpf\x01@" + b"\xff" * 14])
def test_junk_is_no_answer(junk):
    written = f"sys.stdout.buffer.write({junk[:20]!r} * {len(junk) // 20 or 1})"
    child = script(f"import sys, time\n{written}\nsys.stdout.flush()\ntime.sleep(60)")
    with pytest.raises(DeviceError, match="no answer"), child.exchange():
        frames.decode(child.receive)
    child.close()


def test_an_interrupted_exchange_ends_the_process_as_its_answer_would_be_taken_for_the_next():
    child = script("import sys\nfor line in sys.stdin: print(line.strip(), flush=True)")
    child.send(b"first\n")
    with pytest.raises(KeyboardInterrupt), child.exchange():
        raise KeyboardInterrupt
    with pytest.raises(DeviceError, match="interrupted"), child.exchange():
        child.receive(6)
    child.close()


def test_what_cannot_be_started_says_so(tmp_path):
    with pytest.raises(ConversionError, match="the toy cannot be started"):
        Process([str(tmp_path / "nothing")], what="the toy", timeout_s=1.0, error=ConversionError)


def test_a_process_ends_with_ours():
    code = (
        "import sys, os\nfrom deploykit.places.process import Process\n"
        "child = Process([sys.executable, '-c', 'import sys; sys.stdin.read()'], what='x', timeout_s=9)\n"
        "print(child.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(import_path("deploykit"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    pid = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return  # ended; nobody waits for it here
        threading.Event().wait(0.05)
    pytest.fail(f"process {pid} is still there")


def test_the_time_limit_is_the_users(monkeypatch):
    for text, wanted in (("", 5.0), ("nonsense", 5.0), ("-1", 5.0), ("nan", 5.0), ("60", 60.0)):
        monkeypatch.setenv("DEPLOYKIT_CHILD_TIMEOUT_S", text)
        assert time_limit(5.0) == wanted
    monkeypatch.delenv("DEPLOYKIT_CHILD_TIMEOUT_S")
    assert time_limit(5.0) == 5.0


def test_unknown_codes_have_words():
    assert ending(3) == "ended with code 3" and "signal 200" in ending(-200)
