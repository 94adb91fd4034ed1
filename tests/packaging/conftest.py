"""The wheel, and clean environments that it is installed in. They are made once per session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class CleanEnvironment:
    """A virtual environment that holds the wheel and what pip resolved for it."""

    python: Path
    folder: Path

    def run(self, *arguments: str, check: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run its Python outside the checkout, with nothing of the test process's import path."""
        return self._start(str(self.python), *arguments, check=check, **changes)

    def pip(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Let the pip of the test process work on it: one of its own takes seconds to unpack."""
        return self._start(sys.executable, "-m", "pip", "--python", str(self.python), *arguments, **changes)

    def _start(self, *command: str, check: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment = {**kept, **changes}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def deploykit(self, *arguments: str) -> Any:
        """Run a command with `--json`; the document it prints."""
        return json.loads(self.run("-m", "deploykit", *arguments, "--json").stdout)

    @property
    def distributions(self) -> set[str]:
        """Names of everything installed, normalised."""
        listed = json.loads(self.pip("list", "--format", "json").stdout)
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
def clean_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CleanEnvironment]:
    """Makes an environment from nothing: `clean_environment("onnxruntime-runtime", lowest=True)`."""

    def make(extra: str, *, lowest: bool = False) -> CleanEnvironment:
        folder = tmp_path_factory.mktemp(f"venv-{extra or 'core'}")
        venv.create(folder / "venv", with_pip=False)
        made = CleanEnvironment(folder / "venv" / "bin" / "python", folder)
        asked = f"deploykit[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
        changes = {"PIP_CONSTRAINT": str(_lower_bounds(wheel, extra, folder))} if lowest else {}
        made.pip("install", "-q", "--no-compile", asked, **changes)
        return made

    return make


def _lower_bounds(wheel: Path, extra: str, folder: Path) -> Path:
    """The oldest versions that the metadata admits, as a constraints file."""
    parsed = [Requirement(text) for text in wheel_metadata(wheel).get_all("Requires-Dist", [])]
    wanted = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": extra})]
    pins = [f"{one.name}=={part.version}" for one in wanted for part in one.specifier if part.operator == ">="]
    path = folder / "lower-bounds.txt"
    path.write_text("\n".join(pins))
    return path


def wheel_metadata(wheel: Path) -> Message:
    """The METADATA file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(path for path in archive.namelist() if path.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    """What the wheel says about itself."""
    return wheel_metadata(wheel)
