"""What the documents say is what the code has: links, commands, exit codes, targets."""

from __future__ import annotations

import configparser
import re
import tomllib
from email.message import Message
from pathlib import Path

import pytest

import deploykit
from deploykit import Precision, Target
from deploykit.contract import errors
from deploykit.plugin.registry import toolchains

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ROOT / "docs" / "pages"
CALLS = (PAGES / "reference" / "calls.md").read_text(encoding="utf-8")
FOLDERS = (
    "",
    "docs/**/",
    "benchmarks/",
    "calibration/**/",
    "deploykit/**/",
    "examples/**/",
    "fleet/**/",
    "serving/**/",
    "targets/**/",
    "training/**/",
    "trust/**/",
    "tuning/**/",
)
DOCUMENTS = sorted({path for folder in FOLDERS for path in ROOT.glob(f"{folder}*.md")})


def our_toolchains() -> dict[str, Target]:
    """The registered toolchains that this distribution brings."""
    return {name: one for name, one in toolchains().items() if one.capabilities().distribution == "deploykit"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def test_ci_runs_the_second_command() -> None:
    commands = README.split("```")[1].strip().splitlines()
    assert len(commands) == 2
    assert commands[0].endswith("tox -e demo")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()
    assert script[-1].removeprefix("exec ").removesuffix(' "$@"') == commands[1]


def test_exit_codes_are_those_of_the_errors() -> None:
    told = {
        name: int(row.split("|")[1])
        for row in (PAGES / "reference" / "exit_codes.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d+ \|", row)
        for name in re.findall(r"`(\w+Error)`", row)
    }
    assert told == {name: getattr(errors, name).exit_code for name in told}
    public = {name for name in deploykit.__all__ if name.endswith("Error")}
    assert public - set(told) == {"GateError"}, "the base of those that carry a candidate"


@pytest.mark.parametrize("document", ["README.md", "targets/README.md"])
def test_every_toolchain_has_a_row(document: str) -> None:
    rows = [line for line in (ROOT / document).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for name in our_toolchains():
        assert any(re.match(rf"\| \[?`{name}`", row) for row in rows), f"{document} has no row for {name}"


def test_precisions_are_those_there_are() -> None:
    rows = {row.split("`")[1]: row for row in README.splitlines() if row.startswith("| `")}
    for name, plugin in our_toolchains().items():
        told = {word for word in re.split(r"[|,\s]+", rows[name]) if word in set(Precision)}
        assert told == {str(precision) for precision in plugin.capabilities().precisions}, name


def test_public_names_of_the_call_table_exist() -> None:
    for name in re.findall(r"^\| `deploykit\.(\w+)\(", CALLS, re.MULTILINE):
        assert name in deploykit.__all__


def test_every_environment_has_its_extra_and_its_folder() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    listed = {name.strip() for name in tox["tox"]["env_list"].split(",")}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    environments = listed - {"core", "lint", "docs", "demo", "triton", "trust", "release"}
    registered = {
        name for name, plugin in toolchains().items() if type(plugin).__module__.startswith("deploykit_targets")
    }
    assert registered <= extras.keys()
    assert all((ROOT / "tests" / "targets" / name.replace("-", "_")).is_dir() for name in registered)
    served = {name: toolchains_in(name, registered) for name in environments}
    assert registered == set().union(*served.values())
    for name, found in served.items():
        assert set(name.split("-")) == {factor for one in found for factor in one.split("-")}, f"{name}: unknown factor"


def toolchains_in(environment: str, names: set[str]) -> set[str]:
    """The toolchains whose factors an environment has: `tensorrt-rtx` has two, and is no abbreviation of two."""
    factors = set(environment.split("-"))
    return {name for name in names if set(name.split("-")) <= factors}


def test_extras_of_our_targets_are_in_the_metadata(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra", []))
    for plugin in our_toolchains().values():
        assert {plugin.capabilities().export_extra, plugin.capabilities().runtime_extra} <= extras


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-tvm.txt"])
def test_constraints_are_names_and_exact_versions(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins
