"""What contributors use before CI: pre-commit hooks and issue forms are valid, and hooks are the checks of CI."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
yaml = pytest.importorskip("yaml", reason="PyYAML comes with other packages")


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_hooks_are_the_checks_of_ci_and_download_nothing() -> None:
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    hooks = {hook["entry"].replace(" --force-exclude", "") for hook in repo["hooks"]}
    assert all(hook["language"] == "system" for hook in repo["hooks"])
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    asked = {line.replace(" --check", "") for line in tox["testenv:lint"]["commands"].strip().splitlines()}
    assert hooks == asked


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_forms_ask_for_something(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}")
    assert form["name"] and form["description"]
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids)) and all(part["attributes"]["label"] for part in form["body"])


def test_no_folder_of_tests_passes_for_a_package() -> None:
    """`tests/targets` on the path makes `import tvm` succeed where TVM is not installed: its folder is a namespace."""
    pytest_options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"][
        "ini_options"
    ]
    found = {ROOT / path for path in pytest_options["pythonpath"]}
    for file in (ROOT / "tests").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        found |= {file.parents[int(up)] for up in re.findall(r"sys\.path.*Path\(__file__\)\.parents\[(\d)\]\)", text)}
        found |= {file.parent for _ in re.findall(r"sys\.path.*Path\(__file__\)\.parent\)", text)}
    assert len(found) > 5 and all(folder.is_dir() for folder in found)
    targets = {folder.name for folder in (ROOT / "targets/deploykit_targets").iterdir() if folder.is_dir()}
    named = {
        folder / name for folder in found for name in targets if not name.startswith("_") and (folder / name).exists()
    }
    assert not named
