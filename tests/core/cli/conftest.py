"""Runs the command line in this process, with what it writes taken at the level of file descriptors."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from deploykit.cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one document on standard output; anything beside it is an error."""
        return json.loads(self.out)


@pytest.fixture
def cli(capfd):
    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture
def artifact(toy, tmp_path, monkeypatch):
    """A verified artifact with a profile, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deploykit.plugin.proves.peak_memory_bytes", lambda _: 4096)
    return toy.write_artifact(tmp_path / "art", profile=toy.make_profile())
