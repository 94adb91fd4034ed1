"""`Settings`: how an artifact is served, as values, and as the file that `tune-serving` writes and `serve` takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from deploykit.artifact.storage import write_file
from deploykit.contract.errors import UsageError
from deploykit.contract.host import usable_cores
from deploykit.contract.reading import MAX_JSON_BYTES, decode_json, read_bytes

SCHEMA_VERSION = 1
_MOST = 1024  # instances, threads: runtimes hang machines long before they refuse
_LARGEST_BATCH = 1 << 16
_LONGEST_QUEUE = 1 << 20
_DAY_MS = 86_400_000.0


@dataclass(frozen=True)
class Settings:
    """How an artifact is served.

    Attributes:
        instances: how many runs may be beside each other.
        threads: of the runtime in each; None for the cores of this process shared among the instances.
        max_batch: rows in one run.
        max_wait_ms: how long the first row of a batch waits for others; None for 2 ms where `max_batch` is above 1.
        max_queue: rows that may wait; a request that finds no room is refused (503).
        deadline_ms: of a request that names none, from its arrival to its answer (504).
        max_body_bytes: of one request (413).
        max_held_bytes: of the bodies of all requests that are read or wait (503).
    """

    instances: int = 1
    threads: int | None = None
    max_batch: int = 1
    max_wait_ms: float | None = None
    max_queue: int = 64
    deadline_ms: float = 30_000.0
    max_body_bytes: int = 32 << 20
    max_held_bytes: int = 256 << 20

    @property
    def threads_each(self) -> int:
        """Threads of each instance."""
        return self.threads or max(1, usable_cores() // self.instances)

    @property
    def wait_s(self) -> float:
        """Seconds that the first row of a batch waits for others."""
        wait_ms = (2.0 if self.max_batch > 1 else 0.0) if self.max_wait_ms is None else self.max_wait_ms
        return wait_ms / 1e3

    def checked(self) -> Settings:
        """These settings.

        Raises:
            UsageError: one is out of its range; the message names it.
        """
        ranges: tuple[tuple[str, float | None, float, float], ...] = (
            ("instances", self.instances, 1, _MOST),
            ("threads", self.threads, 1, _MOST),
            ("max_batch", self.max_batch, 1, _LARGEST_BATCH),
            ("max_wait_ms", self.max_wait_ms, 0, _DAY_MS),
            ("max_queue", self.max_queue, 1, _LONGEST_QUEUE),
            ("deadline_ms", self.deadline_ms, 1, _DAY_MS),
            ("max_body_bytes", self.max_body_bytes, 1, 1 << 40),
            ("max_held_bytes", self.max_held_bytes, self.max_body_bytes, 1 << 44),
        )
        for name, value, least, most in ranges:
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} must be from {least:g} to {most:g}, not {value:g}")
        return self

    def changed(self, **given: Any) -> Settings:
        """A copy with the values that are not None in the place of these.

        Raises:
            UsageError: one is out of its range.
        """
        return replace(self, **{name: value for name, value in given.items() if value is not None}).checked()


@dataclass(frozen=True)
class TunedSettings:
    """Settings, what was measured with them, and of which artifact.

    Attributes:
        settings: what `serve` takes.
        artifact: fingerprint of the artifact that was measured.
        measured: figures by name, for the reader; nothing is computed from them.
    """

    settings: Settings
    artifact: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UsageError: it cannot be written.
        """
        document = msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"
        write_file(path, document, error=UsageError)


def read_settings(path: Path) -> TunedSettings:
    """Read a file of settings.

    Raises:
        UsageError: there is none, it is damaged, newer than this deploykit, or a value is out of its range.
    """
    hint = "write it with `deploykit tune-serving`"
    if not path.is_file():
        raise UsageError(f"there is no settings file {path}", hint=hint)
    text = read_bytes(path, limit=MAX_JSON_BYTES, links=True, error=UsageError)
    found = decode_json(text, TunedSettings, what=str(path), hint=hint, error=UsageError)
    if found.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {found.schema_version}; this deploykit reads version {SCHEMA_VERSION}",
            hint="pip install --upgrade deploykit" if found.schema_version > SCHEMA_VERSION else hint,
        )
    found.settings.checked()
    return found
