"""Each target has a tox environment of its own name (`-` for `_`) that installs its extra and runs its tests."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = sorted(p.name for p in (ROOT / "targets/deploykit_targets").iterdir() if (p / "target.py").is_file())


def lines_of(setting: str, environment: str) -> list[str]:
    """Lines of a setting that hold for an environment: those without a factor, and those whose factors it has."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    factors, lines = set(environment.split("-")), []
    for line in config["testenv"][setting].strip().splitlines():
        conditional = re.fullmatch(r"([!\w-]+):\s+(.*)", line)
        wanted = conditional[1].split("-") if conditional else []
        if all((word[1:] not in factors) if word.startswith("!") else word in factors for word in wanted):
            lines.append(conditional[2] if conditional else line)
    return lines


def named(environment: str) -> set[str]:
    """The folders and files that an environment's tests are named by, with what its lists of paths stand for."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    text = re.sub(r"\{\[(\w+)\](\w+)\}", lambda found: config[found[1]][found[2]], "\n".join(_commands(environment)))
    return {word.rstrip("/") for word in re.findall(r"(?<!--ignore=)tests/[\w/.]+", text)}


def left_out(files: list[Path], environments: list[str]) -> list[str]:
    """Those files that no environment runs."""
    names = {name for environment in environments for name in named(environment)}
    found = [path.relative_to(ROOT).as_posix() for path in files]
    return [file for file in found if not any(file == name or file.startswith(f"{name}/") for name in names)]


def test_the_targets_are_found() -> None:
    assert {"onnxruntime", "tensorrt", "migraphx"} <= {name for name in TARGETS if not name.startswith("_")}


@pytest.mark.parametrize("target", [name for name in TARGETS if not name.startswith("_")])
def test_a_target_has_its_environment(target: str) -> None:
    name = target.replace("_", "-")
    (command,) = lines_of("commands", name)
    assert re.search(rf"tests/targets/{target}\b", command)
    assert name in lines_of("extras", name)


def test_every_test_is_in_an_environment_that_ci_runs() -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    assert files and not left_out(files, _listed())


def test_what_needs_pytorch_is_in_an_environment_that_has_it() -> None:
    """`core` has none, and skips these: to be named there is not enough."""
    needs = re.compile(
        r"^(?:import|from) (?:torch|onnx)|importorskip\(\"(?:torch|onnx)|importorskip\(module", re.MULTILINE
    )
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if needs.search(path.read_text(encoding="utf-8"))]
    without = [name for name in _listed() if {"core", "triton", "trust"} & set(name.split("-"))]
    assert len(files) > 100 and without and not left_out(files, [name for name in _listed() if name not in without])


def _listed() -> list[str]:
    (listed,) = re.findall(r"^env_list = (.*)$", (ROOT / "tox.ini").read_text(encoding="utf-8"), re.MULTILINE)
    return str(listed).split(", ")


def _commands(name: str) -> list[str]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    own = f"testenv:{name}"
    return config[own]["commands"].splitlines() if config.has_section(own) else lines_of("commands", name)
