"""`deploykit targets` and `deploykit doctor`: what there is, what is missing and how to get it, what is broken."""

import subprocess
import sys
from dataclasses import replace

import pytest

import deploykit
from deploykit.cli.commands.targets import install, installed
from deploykit.contract.optional import Requirement
from deploykit.plugin.registry import TargetInfo


def test_targets_table(cli, toy):
    result = cli("targets")
    assert result.code == 0
    lines = {line.split()[0]: line for line in result.out.splitlines() if line.strip()}
    assert "int8 fp32" in lines["toy-board"] and "export, run" in lines["toy-board"]
    assert lines["absent-board"].split()[-1] == "no"
    assert 'absent, to export: pip install "toy-plugin[absent]"' in result.out


def test_targets_document(cli, toy):
    document = cli("targets", "--json").document
    found = {target["name"]: target for target in document["targets"]}
    assert found["toy-board"]["can_export"] and found["toy-board"]["precisions"] == ["int8", "fp32"]
    assert found["absent-board"]["can_run"] is False
    assert found["absent-board"]["run_command"] == 'pip install "toy-plugin[absent-runtime]"'
    assert len(found) == len(deploykit.targets())


def test_broken_plugins_are_listed_with_their_reason(cli, toy, install):
    install("bad-plugin", {"unready": "toy_toolchain:UnreadyTarget"})
    result = cli("targets")
    assert result.code == 0 and "toy-board" in result.out
    assert "broken: " in result.out and "its [bracketed] licence has expired" in result.out
    broken = cli("targets", "--json").document["broken"]
    assert [one["toolchain"] for one in broken] == ["unready"] and broken[0]["hint"]


def test_a_name_that_two_distributions_claim(cli, toy, install):
    install("rival-plugin", {"toy": "toy_toolchain:AbsentTarget"})
    assert cli("targets").code == 1
    result = cli("doctor")
    assert result.code == 1 and "registered twice" in result.out


def test_doctor_is_well(cli, toy):
    result = cli("doctor")
    assert result.code == 0 and "nothing that is registered is broken" in result.out
    assert "no-such-module MISSING" in result.out and 'pip install "toy-plugin[absent]"' in result.out
    assert "sudo apt-get install toy-package" in result.out


def test_doctor_document(cli, toy):
    document = cli("doctor", "--json").document
    assert document["ok"] and document["problems"] == []
    assert document["deploykit"] == deploykit.__version__ and document["python"] and document["host"]["arch"]
    extras = {(one["toolchain"], one["purpose"]): one for one in document["extras"]}
    assert extras["absent", "export"] == {
        "toolchain": "absent",
        "purpose": "export",
        "packages": [{"name": "no-such-module", "version": None, "note": ""}],
        "complete": False,
        "command": 'pip install "toy-plugin[absent]"',
    }
    assert extras["toy", "run"]["complete"]
    tools = {one["command"]: one for one in document["tools"]}
    assert tools["sh"]["installed"] and not tools["no-such-program-of-toy"]["installed"]


@pytest.mark.parametrize("source", [None, "", "VERSION = 1"], ids=["no code at all", "an empty package", "no API"])
def test_doctor_does_not_take_a_placeholder_for_the_package(cli, toy, monkeypatch, tmp_path, source):
    """A made-up distribution of the name that the package index has a placeholder of."""
    info = tmp_path / "migraphx-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: migraphx\nVersion: 0.0.1\n")
    if source is not None:
        (tmp_path / "migraphx").mkdir()
        (tmp_path / "migraphx" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    wanted = Requirement("migraphx", api="parse_onnx")
    monkeypatch.setattr(toy.AbsentTarget, "capabilities", _with(toy.AbsentTarget.capabilities, wanted))
    result = cli("doctor")
    assert "migraphx MISSING (what is installed as migraphx 0.0.1 is an empty placeholder" in result.out
    extras = {(one["toolchain"], one["purpose"]): one for one in cli("doctor", "--json").document["extras"]}
    assert extras["absent", "run"]["packages"][0]["version"] is None and not extras["absent", "run"]["complete"]


def _with(capabilities, requirement):
    return lambda self: replace(capabilities(self), runtime_requires=(requirement,))


@pytest.mark.parametrize(
    "file", ["migraphx.so", "migraphx/core.cpython-312-x86_64-linux-gnu.so", "migraphx/__init__.py"]
)
def test_the_real_package_is_known_by_its_api_or_native_code(monkeypatch, tmp_path, file):
    """Files as ROCm installs them, without content: nothing is imported."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text("def parse_onnx(): ..." if path.suffix == ".py" else "")
    monkeypatch.syspath_prepend(tmp_path)
    found = Requirement("migraphx", api="parse_onnx")
    assert found.installed and not found.is_placeholder


def test_doctor_finds_what_is_broken(cli, toy, install):
    install("bad-plugin", {"unready": "toy_toolchain:UnreadyTarget"})
    result = cli("doctor")
    assert result.code == 1 and "broken: toolchain unready" in result.out and "licence has expired" in result.out
    document = cli("doctor", "--json").document
    assert not document["ok"] and document["problems"][0]["what"] == "toolchain unready"


@pytest.mark.parametrize(
    ("can_export", "can_run", "words", "command"),
    [
        (True, True, "export, run", ""),
        (True, False, "export", "pip install run"),
        (False, True, "run", "pip install export"),
        (False, False, "no", "pip install export"),
    ],
)
def test_what_is_installed_in_words(can_export, can_run, words, command):
    info = TargetInfo("x", "x", "t", "", (), can_export, can_run, "pip install export", "pip install run")
    assert (installed(info), install(info)) == (words, command)


def test_listings_need_no_parser_of_arguments() -> None:
    """What Typer parses with (pydantic) is a third of the time of `deploykit targets`."""
    script = "import sys; from deploykit.cli import main; code = main(['targets', '--json']); "
    script += "sys.exit(code or 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
