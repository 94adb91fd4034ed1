"""The program around the commands: errors, exit codes, streams, and what surrounds a terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit
from deploykit.cli.output import Answer, write_answer
from deploykit.contract import errors
from deploykit.contract.errors import DeploykitError, GateError
from deploykit.contract.precision import Precision
from deploykit.pipeline import export as _export

COMMANDS = ["export", "build", "targets", "inspect", "verify", "profile", "compare", "run", "doctor"]


def deploykit_process(arguments, toy_path, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, toy_path), *filter(None, sys.path)])}
    environment.update(options.pop("env", {}))
    command = [sys.executable, "-m", "deploykit", *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE, **options)


# -- help and version -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(cli, arguments):
    result = cli(*arguments)
    assert result.code == 0 and not result.err
    assert all(f"  {command} " in result.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_debug(cli, command):
    result = cli(command, "--help")
    assert result.code == 0
    assert "--json" in result.out and "--debug" in result.out


def test_version(cli):
    assert cli("--version").out == f"deploykit {deploykit.__version__}\n"
    assert cli("--version", "--json").document == {"version": deploykit.__version__}


# -- usage errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["expport"], "expport"),
        (["inspect"], "ARTIFACT"),
        (["inspect", "a", "b"], "b"),
        (["targets", "--jsno"], "--jsno"),
        (["profile", "a", "--threads", "two"], "--threads"),
        (["profile", "a", "--threads", "0"], "--threads"),
        (["profile", "a", "--seconds", "-1"], "--seconds"),
        (["run", "a"], "--input"),
        (["export"], "FACTORY"),
        (["export", "m:f", "--option", "no equals sign"], "key=value"),
        (["export", "m:f", "--option", "=1"], "key=value"),
        (["export", "m:f", "--option", "a=1", "--option", "a=2"], "twice"),
        (["export", "m:f", "--option", "a=[1"], "not valid JSON"),
        (["export", "m:f", "--min-sqnr-db", "much"], "--min-sqnr-db"),
    ],
)
def test_usage_errors_are_one_block_and_exit_code_2(cli, arguments, words):
    result = cli(*arguments)
    assert result.code == 2 and not result.out
    assert result.err.startswith("error: ") and words in result.err
    assert "Traceback" not in result.err
    with_json = cli(*arguments, "--json")
    assert with_json.code == 2
    assert with_json.document["error"].keys() == {"type", "message", "hint", "exit_code"}
    assert with_json.document["error"]["exit_code"] == 2 and words in with_json.document["error"]["message"]


# -- errors of the pipeline -------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch, cli):
    """`deploykit export` with a pipeline that raises."""

    def call(error, *arguments):
        def fail(*_, **__):
            print("half a line of a converter")
            raise error

        monkeypatch.setattr(_export, "export", fail)
        return cli("export", "module:factory", *arguments)

    return call


ALL_ERRORS = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, DeploykitError)]


@pytest.mark.parametrize("cls", ALL_ERRORS)
def test_every_error_has_its_exit_code_and_its_document(failing, cls):
    if cls is errors.MissingDependencyError:
        error = cls("onnx", extra="onnxruntime", purpose="test")
    else:
        error = cls("what went wrong in layer [fc]", hint='pip install "deploykit[onnxruntime]"')
    result = failing(error)
    assert result.code == cls.exit_code
    assert result.err.splitlines()[1:] == [f"error: {error.message}", f"  -> {error.hint}"]
    assert not result.out
    assert failing(error, "--json").document == {
        "error": {"type": cls.__name__, "message": error.message, "hint": error.hint, "exit_code": cls.exit_code}
    }


@pytest.mark.parametrize("cls", [cls for cls in ALL_ERRORS if issubclass(cls, GateError)])
def test_a_missed_gate_says_where_the_candidate_is(failing, artifact, cls):
    result = failing(cls("too far", candidate=artifact))
    assert f"deploykit inspect {artifact.path}" in result.err
    document = failing(cls("too far", candidate=artifact), "--json").document
    assert document["error"]["candidate"] == str(artifact.path)


def test_an_error_without_a_hint(failing):
    assert failing(DeploykitError("alone")).err.endswith("error: alone\n")
    assert failing(DeploykitError("alone"), "--json").document["error"]["hint"] is None


def test_debug_shows_the_traceback(failing):
    assert "Traceback" not in failing(DeploykitError("hidden")).err
    shown = failing(DeploykitError("shown"), "--debug")
    assert "Traceback" in shown.err and shown.code == 1


def test_interruption_is_130(failing):
    result = failing(KeyboardInterrupt())
    assert result.code == 130 and "interrupted" in result.err and "Traceback" not in result.err
    assert failing(KeyboardInterrupt(), "--json").document["error"]["exit_code"] == 130


def test_a_defect_asks_for_a_report(failing):
    result = failing(ZeroDivisionError("division by zero"))
    assert result.code == 1 and not result.out
    assert "Traceback" in result.err and "please report" in result.err
    document = failing(ZeroDivisionError("division by zero"), "--json").document["error"]
    assert (document["type"], document["exit_code"]) == ("ZeroDivisionError", 1)


def test_a_script_that_exits_is_no_success(failing):
    result = failing(SystemExit(0))
    assert result.code == 2 and "sys.exit(0)" in result.err


# -- user mistakes with files -----------------------------------------------------------------------------------

READERS = [
    ["inspect"],
    ["verify"],
    ["profile"],
    ["compare"],
    ["run", "--input", "in.npz", "--output", "out.npz"],
]


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
@pytest.mark.parametrize("kind", ["missing", "empty folder", "file", "damaged"])
def test_what_is_no_artifact_is_exit_code_9(cli, artifact, tmp_path, command, kind):
    import numpy as np

    np.savez(tmp_path / "in.npz", x=np.ones((1, 4), np.float32))
    path = tmp_path / kind.replace(" ", "-")
    if kind == "empty folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("x")
    elif kind == "damaged":
        artifact.entry.write_bytes(b"x")
        path = artifact.path
    result = cli(command[0], path, *command[1:], "--json")
    assert result.code == 9 and "Traceback" not in result.err
    assert result.document["error"]["type"] == "ArtifactError" and result.document["error"]["hint"]


# -- streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["targets"], ["doctor"], ["inspect", "art"], ["verify", "art"], ["compare", "art"]]
)
def test_json_is_one_document_and_the_page_has_no_escapes(cli, artifact, command):
    human, machine = cli(*command), cli(*command, "--json")
    assert human.code == machine.code
    assert human.out.strip() and "\x1b" not in human.out + human.err
    assert isinstance(machine.document, dict)
    assert cli("--json", *command).document == machine.document, "before the command, too"


def test_json_has_no_nan_and_takes_paths(capfd):
    write_answer(Answer({"a": float("nan"), "b": [float("-inf"), Path("x")]}, ()), as_json=True)
    assert json.loads(capfd.readouterr().out, parse_constant=pytest.fail) == {"a": None, "b": [None, "x"]}


def test_what_runtimes_print_does_not_reach_standard_output(cli, artifact, monkeypatch):
    def loud(self, *_):
        os.write(1, b"from C++\n")
        print("from Python")
        return original(self, *_)

    original = type(artifact).verify
    monkeypatch.setattr(type(artifact), "verify", loud)
    result = cli("verify", "art", "--json")
    assert result.document["verified"]
    assert "from C++" in result.err and "from Python" in result.err
    assert "the runtime talks on standard output" in result.err


def test_pages_of_any_width_lose_nothing(cli, artifact, monkeypatch):
    wide = cli("inspect", "art").out
    for columns in ("40", "25"):
        monkeypatch.setenv("COLUMNS", columns)
        narrow = cli("inspect", "art")
        assert narrow.code == 0
        assert max(map(len, narrow.out.splitlines())) <= int(columns)
        for word in ("counted by hand", "verified", "matrix.npy"):
            assert word in wide
            letters = "".join(narrow.out.split())
            assert "".join(word.split()) in letters or all(part in letters for part in word.split())


def test_a_pipe_gets_whole_lines(cli, artifact):
    line = next(line for line in cli("targets").out.splitlines() if line.strip().startswith("absent,"))
    assert 'pip install "toy-plugin[absent]"' in line


@pytest.mark.parametrize("arguments", [["targets"], ["targets", "--json"], ["--help"], ["--version"]])
def test_a_reader_that_goes_away_is_no_error(toy_path, arguments):
    read, write = os.pipe()
    os.close(read)
    done = deploykit_process(arguments, toy_path, stdout=write)
    os.close(write)
    assert done.returncode in (141, 1) and not done.stderr, done.stderr.decode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["targets"], ["targets", "--json"]])
def test_a_full_disk_is_an_error_and_not_a_success(toy_path, arguments):
    with open("/dev/full", "wb") as full:
        done = deploykit_process(arguments, toy_path, stdout=full)
    assert done.returncode != 0 and b"No space left" in done.stderr


def test_closed_streams(toy_path):
    script = f"exec {sys.executable} -m deploykit targets >&-"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, toy_path), *filter(None, sys.path)])}
    done = subprocess.run(["sh", "-c", script], env=environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_a_locale_without_the_characters(toy_path):
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = deploykit_process(["targets"], toy_path, stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0 and b"toy-board" in done.stdout and not done.stderr
    done = deploykit_process(["inspect", "ünïcode", "--json"], toy_path, stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 9 and "ünïcode" in json.loads(done.stdout)["error"]["message"]


def test_a_terminal_gets_colours_unless_told_not_to(toy, artifact, monkeypatch):
    import io

    from deploykit.cli.output import make_console
    from deploykit.cli.tables import status_text

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown():
        stream = Terminal()
        make_console(stream).print(status_text("failed"))
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31m" not in shown()


def test_every_precision_can_be_named(cli, monkeypatch):
    seen = []

    def record(model, target, precision, **_):
        seen.append(precision)
        raise DeploykitError("enough")

    monkeypatch.setattr(_export, "export", record)
    for precision in Precision:
        cli("export", "m:f", "--precision", precision.value)
    assert seen == [precision.value for precision in Precision]
