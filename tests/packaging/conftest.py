"""The wheel, and clean environments that it is installed in. They are made once per session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class CleanEnvironment:
    """A virtual environment that holds the wheel and what pip resolved for it."""

    python: Path
    folder: Path

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run its Python outside the checkout, with nothing of the test process's import path."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [str(self.python), *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=environment,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def deploykit(self, *arguments: str) -> Any:
        """Run a command with `--json`; the document it prints."""
        return json.loads(self.run("-m", "deploykit", *arguments, "--json").stdout)

    @property
    def distributions(self) -> set[str]:
        """Names of everything installed, normalised."""
        listed = json.loads(self.run("-m", "pip", "list", "--format", "json").stdout)
        return {entry["name"].lower().replace("_", "-") for entry in listed}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without an isolated environment."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def clean_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CleanEnvironment]:
    """Makes an environment from nothing: `clean_environment("")` or `clean_environment("onnxruntime-runtime")`."""

    def make(extra: str) -> CleanEnvironment:
        folder = tmp_path_factory.mktemp(f"venv-{extra or 'core'}")
        venv.create(folder / "venv", with_pip=True)
        made = CleanEnvironment(folder / "venv" / "bin" / "python", folder)
        made.run("-m", "pip", "install", "-q", f"deploykit[{extra}] @ {wheel.as_uri()}" if extra else str(wheel))
        return made

    return make
