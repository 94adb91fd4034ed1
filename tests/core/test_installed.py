"""Hints name what pip can install here: a checkout, a wheel, or a name of the index."""

import importlib.metadata
import json

import pytest

from deploykit.contract import installed
from deploykit.contract.installed import here_command


@pytest.fixture
def recorded(monkeypatch):
    """Says what pip recorded of a distribution; None for nothing, an exception where it is not installed."""

    def say(text):
        class Found:
            def read_text(self, name):
                assert name == "direct_url.json"
                return text

        def distribution(name):
            if isinstance(text, Exception):
                raise text
            return Found()

        installed._source_of.cache_clear()
        monkeypatch.setattr(importlib.metadata, "distribution", distribution)

    yield say
    installed._source_of.cache_clear()


def test_from_an_index(recorded):
    recorded(None)
    assert here_command("onnxruntime") == 'pip install "deploykit[onnxruntime]"'
    assert here_command("", "toy-plugin") == "pip install toy-plugin"


def test_from_a_checkout(recorded, tmp_path, monkeypatch):
    recorded(json.dumps({"url": tmp_path.as_uri(), "dir_info": {"editable": True}}))
    assert here_command("coreml") == f'pip install "{tmp_path}[coreml]"'
    monkeypatch.chdir(tmp_path)
    assert here_command("coreml") == 'pip install ".[coreml]"'


def test_from_a_wheel(recorded, tmp_path):
    wheel = tmp_path / "a b.whl"
    wheel.write_bytes(b"")
    recorded(json.dumps({"url": wheel.as_uri(), "archive_info": {}}))
    assert here_command("coreml") == f'pip install "{wheel}[coreml]"'
    assert here_command("") == f'pip install "{wheel}"'


@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"url": 3}', '{"url": "https://x/y.whl"}', '{"url": "file:///no"}']
)
def test_what_cannot_be_used_falls_back_to_the_name(recorded, text):
    recorded(text)
    assert here_command("coreml") == 'pip install "deploykit[coreml]"'


def test_sources_that_are_not_installed(recorded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installed, "_ROOT", tmp_path / "checkout")
    recorded(importlib.metadata.PackageNotFoundError("deploykit"))
    assert here_command("coreml") == 'pip install "deploykit[coreml]"', "nor sources, as it seems"
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "pyproject.toml").touch()
    installed._source_of.cache_clear()
    assert here_command("coreml") == f'pip install "{installed._ROOT}[coreml]"'
    assert here_command("coreml", "else") == 'pip install "else[coreml]"'
