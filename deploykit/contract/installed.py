"""The pip command for an extra, as it works on this machine: from the checkout, the wheel, or the package index.

pip records where a distribution came from (PEP 610). What came from a checkout or a wheel is not asked of an index,
which may not have it, or another of that name.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from pathlib import Path
from urllib.parse import unquote, urlparse

_ROOT = Path(__file__).resolve().parents[2]


def here_command(extra: str, distribution: str = "deploykit") -> str:
    """The pip command that installs `distribution` with `extra` ("" for none) from where it was installed from."""
    source = _source_of(distribution)
    if source == str(Path.cwd()):
        source = "."
    named = f"{source}[{extra}]" if extra else source
    return f'pip install "{named}"' if extra or " " in named else f"pip install {named}"


@functools.cache
def _source_of(distribution: str) -> str:
    """A folder, a wheel's path, or the name that an index knows."""
    try:
        recorded = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        is_own = distribution == "deploykit" and (_ROOT / "pyproject.toml").is_file()  # run from its sources
        return str(_ROOT) if is_own else distribution
    path = _path_of(recorded)
    return str(path) if path is not None and path.exists() else distribution


def _path_of(recorded: str | None) -> Path | None:
    try:
        url = json.loads(recorded or "{}").get("url", "")
        return Path(unquote(urlparse(url).path)) if str(url).startswith("file:") else None
    except (ValueError, AttributeError, TypeError):
        return None
