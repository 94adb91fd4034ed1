"""`Transfer`: files to and from a board, addressed by their hash, appended to where a line was cut.

A file goes in blocks, each an own command whose end says that it has arrived: what a cut costs is at most one block,
`BLOCK_BYTES`. Blocks are written at the offset that they belong to, so that a writer of a cut line which still lives
there writes what is right, at its place. A file gets its own name once its hash is right, and is never sent again.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import DeviceError
from deploykit.places.line import COPY_S, Line, LostError

FOLDER = ".cache/deploykit"
"""On the board, in its home folder; may be removed at any time."""
UNIT_BYTES = 1 << 16
BLOCK_BYTES = 15 * UNIT_BYTES
"""At most this is sent again for a cut: what of a block has arrived is kept in whole units."""

_PARTS = f"{FOLDER}/parts"
_DAMAGED, _SHORT = 65, 75
_BARREN_TRIES, _PAUSE_S = 5, 0.3  # a line that brings nothing, so often in turn, is given up

SHELL = (
    'hash() { if command -v sha256sum >/dev/null 2>&1; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }; '
    'size() { stat -c %s "$1" 2>/dev/null || wc -c < "$1" 2>/dev/null || echo 0; }; '
)
"""Functions of the shell that the scripts here use."""

_ARRIVED = (
    "find {parts} -type f -mtime +7 -exec rm -f {{}} + 2>/dev/null; "
    "cd {folder} 2>/dev/null || exit 0; hash {names} 2>/dev/null || true"
)
_WRITE = """
set -e; umask 077; mkdir -p {parts}; part={parts}/{digest}
said=$(dd bs={unit} seek={seek} of="$part" conv=notrunc 2>&1) || {{ echo "$said" >&2; exit 1; }}
"""
_FINISH = """
mkdir -p {parent}
if [ -f {path} ] && [ "$(hash {path} | cut -c 1-64)" = {digest} ]; then rm -f "$part"; exit 0; fi
[ "$(size "$part")" -ge {size} ] || exit {short}
[ "$(hash "$part" | cut -c 1-64)" = {digest} ] || {{ rm -f "$part"; exit {damaged}; }}
chmod {mode} "$part"; mv -f "$part" {path}
"""


class Transfer:
    """Copies files over a line.

    Attributes:
        sent_bytes: the bytes of files, as they were handed to the line, repeated ones too.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self.sent_bytes = 0

    def missing(self, folder: str, digests: Mapping[str, str]) -> list[str]:
        """Which files of a folder are not on the board, whole.

        Args:
            folder: there.
            digests: sha256 by name.
        Raises:
            DeviceError: the board cannot be asked.
        """
        quoted = {"parts": _PARTS, "folder": shlex.quote(folder), "names": shlex.join(digests)}
        lines = self._line.run(SHELL + _ARRIVED.format(**quoted), timeout_s=COPY_S).stdout.decode(errors="replace")
        parted = (line.partition(" ") for line in lines.splitlines())
        there = {(name[1:], digest) for digest, _, name in parted if name}  # a blank or an asterisk stands before it
        return [name for name, digest in digests.items() if (name, digest) not in there]

    def send(self, source: Path | bytes, path: str, digest: str, *, mode: str = "600") -> None:
        """Copy a file, however often the line is cut, as long as something arrives.

        Args:
            source: file, or its content.
            path: there.
            digest: sha256 of the content.
            mode: permissions there, octal.
        Raises:
            LostError: the line brings nothing any more; what has arrived is kept, and the next call goes on there.
            DeviceError: the board refuses it, or it arrived damaged, twice.
        """
        if self._sent(source, path, digest, mode) or self._sent(source, path, digest, mode):
            return
        name = path.rpartition("/")[2]
        raise DeviceError(f"{name} arrived damaged on {self._line}; nothing was kept", hint="try again")

    def _sent(self, source: Path | bytes, path: str, digest: str, mode: str) -> bool:
        """Copy a file to its end; False where it arrived damaged."""
        at, tries, size = 0 if _size(source) <= BLOCK_BYTES else self._offset(digest), 0, _size(source)
        while True:
            try:
                done = self._block(source, at, path, digest, mode)
                if at + BLOCK_BYTES >= size and done != _SHORT:
                    return done == 0
                at, tries = (at + BLOCK_BYTES, 0) if done == 0 else (self._offset(digest), tries + 1)
            except LostError:
                tries, at = self._after_a_cut(digest, at, tries)
            if tries >= _BARREN_TRIES:
                message = f"{self._line} cannot be reached, or the line was cut: {at} of {size} bytes have arrived"
                raise LostError(message, hint=f"{self._line.hint}; then try again: it goes on there")

    def _after_a_cut(self, digest: str, at: int, tries: int) -> tuple[int, int]:
        """How often nothing arrived by now, and where to go on."""
        while True:
            time.sleep(_PAUSE_S * (tries + 1))
            try:
                found = self._offset(digest)
                return (0 if found > at else tries + 1), found
            except LostError:
                tries += 1
                if tries >= _BARREN_TRIES:
                    raise

    def _block(self, source: Path | bytes, at: int, path: str, digest: str, mode: str) -> int:
        """Send a block, and put the file in its place after the last one; 0, or what is wrong with it."""
        size, data = _size(source), _read(source, at)
        texts = {"parts": _PARTS, "parent": path.rpartition("/")[0], "path": path, "digest": digest, "mode": mode}
        words = {name: shlex.quote(text) for name, text in texts.items()}
        numbers = {"unit": UNIT_BYTES, "seek": at // UNIT_BYTES, "size": size, "short": _SHORT, "damaged": _DAMAGED}
        script = _WRITE + (_FINISH if at + len(data) >= size else "")
        self.sent_bytes += len(data)
        done = self._line.run(SHELL + script.format(**words, **numbers), data=data, timeout_s=COPY_S, check=False)
        if done.returncode not in (_DAMAGED, _SHORT):
            self._line.check(done)
        return done.returncode

    def _offset(self, digest: str) -> int:
        """From where a file is to be sent: what of it has arrived, in whole units."""
        found = self._line.run(f"{SHELL}size {_PARTS}/{shlex.quote(digest)}").stdout.split()
        return int(found[0]) // UNIT_BYTES * UNIT_BYTES if found and found[0].isdigit() else 0

    def fetch(self, path: str, digest: str, size: int, destination: Path) -> None:
        """Copy a file from the board, however often the line is cut, as long as something arrives.

        Args:
            path: there.
            digest, size: the digest and size of the content.
            destination: here; what of it is there already is gone on from.
        Raises:
            LostError: the line brings nothing any more.
            DeviceError: what arrived is not what was sent.
        """
        tries = 0
        while (at := destination.stat().st_size if destination.exists() else 0) < size:
            try:
                self._append(path, at, destination)
            except LostError:
                if destination.stat().st_size == at:
                    tries += 1
                    if tries >= _BARREN_TRIES:
                        raise
                time.sleep(_PAUSE_S * (tries + 1))
        if destination.stat().st_size != size or sha256_of(destination) != digest:
            destination.unlink()
            raise DeviceError(f"{path.rpartition('/')[2]} arrived damaged from {self._line}", hint="try again")

    def _append(self, path: str, at: int, destination: Path) -> None:
        command = self._line.command(f"tail -c +{at + 1} {shlex.quote(path)}")
        with destination.open("ab") as file:
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, timeout=COPY_S, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise LostError(f"{self._line} did not answer within {COPY_S:g} s", hint=self._line.hint) from error
        self._line.check(done)


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _read(source: Path | bytes, at: int) -> bytes:
    if isinstance(source, bytes):
        return source[at : at + BLOCK_BYTES]
    with source.open("rb") as file:
        file.seek(at)
        return file.read(BLOCK_BYTES)
