"""User and password for a registry: from two environment variables, or from the user's Docker configuration.

A third variable names the registry that the two are for: others are then asked with what Docker has for them.

They are handed to the registry that the user named, or to the token service that it names, over TLS (or on this
machine); never to where it redirects, and never into a message, a log or a file.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.contract.errors import UsageError
from deploykit.contract.reading import decode_json, read_bytes

USER, PASSWORD = "DEPLOYKIT_REGISTRY_USER", "DEPLOYKIT_REGISTRY_PASSWORD"
HOST = "DEPLOYKIT_REGISTRY_HOST"
_TIMEOUT_S = 30.0
_LARGEST_BYTES = 4 << 20
_HELPER = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Credentials:
    """Who asks. `repr` shows neither password nor header."""

    user: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def credentials_for(host: str) -> Credentials | None:
    """What the user has for a registry; None for nothing: it is then asked as nobody.

    Args:
        host: with its port, as it was typed.
    Raises:
        UsageError: one of the two variables is missing, the configuration cannot be read, or a helper fails.
    """
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if user or password:
        if not (user and password):
            raise UsageError(f"{USER} and {PASSWORD} go together, and one is not set", hint="set both, or neither")
        if (os.environ.get(HOST) or host) == host:
            return Credentials(user, password)
    return _of_docker(host)


def _of_docker(host: str) -> Credentials | None:
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    if not path.is_file():
        return None
    hint = "log in again: docker login"
    data = read_bytes(path, limit=_LARGEST_BYTES, links=True, error=UsageError)
    config = decode_json(data, dict[str, Any], what=str(path), error=UsageError, hint=hint)
    keys = _keys(host)
    helpers = config.get("credHelpers")
    for key in keys:
        if isinstance(helpers, dict) and isinstance(helpers.get(key), str):
            return _asked(helpers[key], key)
    entries = config.get("auths")
    for key in keys:
        entry = entries.get(key) if isinstance(entries, dict) else None
        if isinstance(entry, dict) and entry.get("auth"):
            return _decoded(entry["auth"], path, hint)
        if isinstance(entry, dict) and isinstance(config.get("credsStore"), str):
            return _asked(config["credsStore"], key)
    return None


def _keys(host: str) -> list[str]:
    return [host, *(f"https://{host}{path}" for path in ("", "/v1/", "/v2/"))]


def _decoded(auth: object, path: Path, hint: str) -> Credentials:
    try:
        user, separator, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        separator = user = password = ""
    if not (separator and user):
        raise UsageError(f"{path} holds a login that cannot be read", hint=hint) from None
    return Credentials(user, password.rstrip("\0"))


def _asked(helper: str, key: str) -> Credentials | None:
    """What a credential helper of Docker's answers; it is a program that the user's own configuration names."""
    program = shutil.which(f"docker-credential-{helper}") if _HELPER.fullmatch(helper) else None
    if program is None:
        raise UsageError(f"the Docker configuration names the helper {helper!r}, which is not installed")
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode:  # it has nothing for this registry; what it says may hold secrets
            return None
        found = json.loads(done.stdout)
        user, password = str(found["Username"]), str(found["Secret"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        raise UsageError(f"the helper {helper!r} gave no login that can be read", hint="docker login") from None
    if user == "<token>":
        message = f"the helper {helper!r} has an identity token, which is not taken here"
        raise UsageError(message, hint=f"set {USER} and {PASSWORD}")
    return Credentials(user, password)
