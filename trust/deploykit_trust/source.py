"""The commit of the checkout that an artifact was signed in, as git says it; nothing where there is no git checkout."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from deploykit.contract.errors import UsageError

_SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")  # a repository's settings run programs
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Source:
    """A state of source code.

    Attributes:
        commit: 40 or 64 hex digits.
        url: of the remote `origin`, without user and password; "" where there is none.
        dirty: whether tracked files differ from the commit.
    """

    commit: str
    url: str
    dirty: bool


def source_of(folder: str | Path) -> Source | None:
    """The state of the git checkout that a folder lies in; None where it lies in none, or there is no git.

    Raises:
        UsageError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"there is no folder {str(folder)!r} whose commit could be recorded")
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        return None
    url = _git(folder, "config", "--get", "remote.origin.url") or ""
    status = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return Source(commit, _without_password(url), status != "")


def _git(folder: str | Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *_SAFE, *arguments], capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else done.stdout.decode(errors="replace").strip()


def _without_password(url: str) -> str:
    if "://" not in url:
        return url.rpartition("@")[2]  # git@host:path
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
