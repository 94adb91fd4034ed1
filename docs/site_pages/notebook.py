"""The notebook, executed while the site is built: a cell that fails ends the build."""

from __future__ import annotations

import os
import re
import tempfile
from typing import Any

from site_pages.rooms import ROOT

_NOTEBOOK = ROOT / "examples" / "first_export.ipynb"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def pages() -> dict[str, str]:
    """The executed notebook as a page."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(_NOTEBOOK, as_version=4)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    return {"notebook.md": "\n".join(part for cell in notebook.cells for part in _parts(cell))}


def _parts(cell: Any) -> list[str]:
    if cell.cell_type == "markdown":
        return [cell.source, ""]
    said = "\n".join(text for output in cell.outputs if (text := _text(output).strip()))
    return [f"```python\n{cell.source}\n```", *([f"```text\n{said}\n```"] if said else []), ""]


def _text(output: Any) -> str:
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return _ANSI.sub("", "".join(text))
