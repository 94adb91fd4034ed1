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


def test_the_targets_are_found() -> None:
    assert {"onnxruntime", "tensorrt", "migraphx"} <= {name for name in TARGETS if not name.startswith("_")}


@pytest.mark.parametrize("target", [name for name in TARGETS if not name.startswith("_")])
def test_a_target_has_its_environment(target: str) -> None:
    name = target.replace("_", "-")
    (command,) = lines_of("commands", name)
    assert re.search(rf"tests/targets/{target}\b", command)
    assert name in lines_of("extras", name)


def test_every_test_is_in_an_environment_that_ci_runs() -> None:
    text = (ROOT / "tox.ini").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^env_list = (.*)$", text, re.MULTILINE)
    commands = "\n".join(line for name in listed.split(", ") for line in _commands(name))
    named = {word.rstrip("/") for word in re.findall(r"(?<!--ignore=)tests/[\w/.]+", commands)}
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    left = [file for file in files if not any(file == name or file.startswith(f"{name}/") for name in named)]
    assert files and not left


def _commands(name: str) -> list[str]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    own = f"testenv:{name}"
    return config[own]["commands"].splitlines() if config.has_section(own) else lines_of("commands", name)
