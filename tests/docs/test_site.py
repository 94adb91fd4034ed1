"""The documentation site: built offline and strictly, with a page for all that there is, and nothing of other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit
from deploykit.plugin.registry import toolchains

ROOT = Path(__file__).resolve().parents[2]

for module in ("mkdocs", "material", "mkdocstrings", "nbclient", "ipykernel", "torch", "onnxruntime"):
    pytest.importorskip(module, reason=f"{module} is not installed: tox -e docs has it")


pytestmark = pytest.mark.xdist_group("site")  # one process builds it, while others run pages


@pytest.fixture(scope="module")
def site() -> Path:
    """The site as tox has just built it; built here where it is not there."""
    built = ROOT / "out" / "site"
    if not (built / "index.html").is_file():
        command = [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-f",
            str(ROOT / "docs" / "mkdocs.yml"),
        ]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    return built


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loads = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', re.IGNORECASE)
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    assert not [page.name for page in pages if loads.search(text_of(page))]
    styles = [style for style in site.rglob("*.css") if re.search(r"url\(\s*['\"]?(?:https?:)?//", text_of(style))]
    assert not styles


def test_every_target_has_its_page_with_its_devices_and_operators(site: Path) -> None:
    for name, target in toolchains().items():
        if not type(target).__module__.startswith("deploykit_targets"):
            continue
        page = text_of(site / "targets" / f"{name}.html")
        assert all(device in page for device in target.capabilities().devices), name
        if "int8" in target.capabilities().precisions:
            assert "Kinds of operators" in page and "<strong>yes</strong>" in page, name
    assert "overloads of" in text_of(site / "targets" / "onnxruntime.html")


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = text_of(site / "reference" / "python.html") + text_of(site / "reference" / "errors.html")
    missing = [name for name in deploykit.__all__ if name != "__version__" and f".{name}" not in page]
    assert not missing
    assert "Raises:" in page and "Returns: The" not in page, "sections are read as sections"


def test_the_manifest_has_its_schema_and_the_notebook_its_outputs(site: Path) -> None:
    assert "JSON Schema" in text_of(site / "reference" / "manifest.html")
    notebook = text_of(site / "notebook.html")
    assert "of the multiply-accumulates in int8" in notebook and re.search(r"capture \d+\.\d s", notebook)


def test_commands_are_described_by_themselves(site: Path) -> None:
    page = text_of(site / "reference" / "cli.html")
    assert all(f"deploykit {name}" in page for name in ("export", "tune", "verify", "targets", "doctor"))
