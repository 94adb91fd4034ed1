"""`Registry`: the boards that a user knows by name, as a TOML file that people read and edit.

    [devices.jetson-lab]
    address = "lab@10.0.0.5"
    target = "jetson-orin"

The file is `$DEPLOYKIT_DEVICES`, else `deploykit/devices.toml` in the user's configuration folder. Writing a device
replaces its own tables and leaves every other line as it is, comments included. It holds no secret: how a board lets
one in is for ssh, or adb.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from deploykit.artifact.storage import write_file
from deploykit.contract.errors import DeviceError, UsageError
from deploykit.contract.reading import read_bytes

FILE = "DEPLOYKIT_DEVICES"
"""Environment variable: the file, in place of the one in the user's configuration folder."""
_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_HEADER = re.compile(r"\s*\[+\s*(.*?)\s*\]+\s*(?:#.*)?")
_TOP = "# Boards that deploykit knows. `deploykit device add` writes here; you may edit it. It holds no secret.\n"


@dataclass(frozen=True)
class Found:
    """What a board said of itself when it was added.

    Attributes:
        arch, os, cores: as `uname` and `getconf` say.
        isa: the instruction sets that matter to kernels.
        system, kernel, model: of the distribution, the kernel and the board; "" where it does not tell.
        memory_bytes: of the machine; 0 where it does not tell.
        python, deploykit: versions there; "" where there is none that this deploykit can talk to.
        runtimes: distributions there that run artifacts, with their versions.
        sensors: what it tells of temperature, clock and throttling.
        absent: what it does not tell of these.
    """

    arch: str = ""
    os: str = ""
    cores: int = 0
    isa: tuple[str, ...] = ()
    system: str = ""
    kernel: str = ""
    model: str = ""
    memory_bytes: int = 0
    python: str = ""
    deploykit: str = ""
    runtimes: dict[str, str] = field(default_factory=dict)
    sensors: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A board.

    Attributes:
        address: `user@host`, another address that ssh takes, or `adb:SERIAL`.
        target: device that artifacts for it are exported to; "" where it was not said.
        python: the Python there that has deploykit; "" for the first that is found.
        found: what it said of itself; None where nobody asked.
    """

    address: str
    target: str = ""
    python: str = ""
    found: Found | None = None


class Registry:
    """The file.

    Args:
        path: None for `$DEPLOYKIT_DEVICES`, else the one in the user's configuration folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = default_path() if path is None else Path(path)

    def entries(self) -> dict[str, Entry]:
        """All boards, by name; none where there is no file.

        Raises:
            UsageError: the file is malformed; the message names the line.
        """
        return _entries(self._text(), self.path)

    def get(self, name: str) -> Entry:
        """The board of that name.

        Raises:
            UsageError: there is none; the message lists those there are.
        """
        found = self.entries()
        if name in found:
            return found[name]
        known = f"there are {', '.join(sorted(found))}" if found else "there are none yet"
        raise UsageError(f"no device {name!r} in {self.path}; {known}", hint=f"deploykit device add {name} user@host")

    def put(self, name: str, entry: Entry) -> None:
        """Write a board, in place of one of that name.

        Raises:
            UsageError: the name cannot be one, or the file is malformed.
            DeviceError: the file cannot be written.
        """
        check_name(name)
        with self._locked():
            text = self._text()
            wanted = {**_entries(text, self.path), name: entry}
            self._write(_without(text, name) + _tables(name, entry), wanted, name)

    def remove(self, name: str) -> None:
        """Forget a board; nothing is done to it.

        Raises:
            UsageError: there is none of that name, or it stands in a form that is not edited here.
        """
        with self._locked():
            self.get(name)
            text = self._text()
            wanted = {own: entry for own, entry in _entries(text, self.path).items() if own != name}
            self._write(_without(text, name), wanted, name)

    def _write(self, text: str, wanted: dict[str, Entry], name: str) -> None:
        """Write what reads back as wanted, and nothing else: somebody may have written a device in another form."""
        try:
            as_wanted = _entries(text, self.path) == wanted
        except UsageError:
            as_wanted = False
        if not as_wanted:
            message = f"{self.path} has devices in a form that is not edited here; it is left as it was"
            raise UsageError(message, hint=f"write a table for each, [devices.{name}], or edit it by hand")
        write_file(self.path, text.encode(), error=DeviceError)

    def _text(self) -> str:
        if not self.path.exists():
            return _TOP
        data = read_bytes(self.path, limit=_MAX_BYTES, links=True, error=UsageError)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise UsageError(f"{self.path}, line {line}: not UTF-8", hint="save the file as UTF-8") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: each reads what the one before it has written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            message = f"cannot write {self.path}: {error.strerror or error}"
            raise DeviceError(message, hint=f"name another file in ${FILE}") from error
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def default_path() -> Path:
    """Where boards are written down."""
    own = os.environ.get(FILE)
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "deploykit" / "devices.toml"


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a device.

    Raises:
        UsageError: says what a name is made of.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a device", hint="letters, digits, '-', '_' and '.'")


def _entries(text: str, path: Path) -> dict[str, Entry]:
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}", hint="mend the line, or remove the file") from error
    devices = data.pop("devices", {})
    if data or not isinstance(devices, dict):
        other = next(iter(data), "devices")
        raise UsageError(f"{path}: {other!r} is not known here", hint="a device is a table: [devices.NAME]")
    return {name: _entry(name, table, text, path) for name, table in devices.items()}


def _entry(name: str, table: Any, text: str, path: Path) -> Entry:
    where = f"{path}, line {_line_of(text, name)}, device {name!r}"
    known = set(Entry.__dataclass_fields__)
    unknown = sorted(set(table) - known) if isinstance(table, dict) else []
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}", hint=f"known are {', '.join(sorted(known))}")
    try:
        return msgspec.convert(table, Entry)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}", hint='such as address = "user@host"') from error


def _line_of(text: str, name: str) -> int:
    """The line of a device's header, from 1."""
    numbered = enumerate(text.split("\n"), 1)
    return next((number for number, line in numbered if _owner(line) == name), 1)


def _owner(line: str) -> str | None:
    """The device that a table's header is of; "" for another header, None for a line that is none."""
    found = _HEADER.fullmatch(line)
    if found is None:
        return None
    try:
        parsed = tomllib.loads(f"[{found.group(1)}]")
    except tomllib.TOMLDecodeError:
        return None
    devices = parsed.get("devices")
    return next(iter(devices)) if isinstance(devices, dict) and devices else ""


def _without(text: str, name: str) -> str:
    """The text without the tables of a device; comments before what follows them stay."""
    kept: list[str] = []
    between: list[str] = []  # comments and blank lines since its last key
    inside = False
    for line in text.split("\n"):
        owner = _owner(line)
        inside = inside if owner is None else owner == name
        if not inside:
            kept += [*between, line]
            between = []
        else:
            between = [*between, line] if owner is None and line.strip()[:1] in ("", "#") else []
    return "\n".join([*kept, *between]).rstrip("\n") + "\n"


def _tables(name: str, entry: Entry) -> str:
    own = {key: value for key, value in dataclasses.asdict(entry).items() if value}
    found: Mapping[str, Any] = own.pop("found", None) or {}
    quoted = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
    lines = ["", f"[devices.{quoted}]", *_pairs(own)]
    if found:
        lines += ["", f"[devices.{quoted}.found]", *_pairs({key: value for key, value in found.items() if value})]
    return "\n".join([*lines, ""])


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    """A string, number, list of strings or table of strings; JSON's strings are TOML's, but for DEL."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_value(key)} = {_value(own)}" for key, own in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
