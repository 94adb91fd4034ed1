"""Who is at work in a store: a folder with a lease in it, kept alive by the time of its file.

A store may lie on a file system that several machines share, where a process id says nothing. A lease names host and
boot, and its holder touches it; on the same boot of the same host its lock tells at once whether the holder lives, from
anywhere else it counts as dead when nobody touched it for `EXPIRY_S`, by the clock of the file system itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from deploykit.contract.errors import ArtifactError, DeploykitError
from deploykit.contract.reading import read_json

NAME = "lease.json"
EXPIRY_S = 120.0
_BEAT_S = 5.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a lease.

    Attributes:
        kind: `release` or `gc`.
        host, boot: of the holder; `boot` changes when the machine starts again.
        keys: of the cells that the holder relies on, which nobody may collect meanwhile.
    """

    kind: str
    host: str
    boot: str
    keys: tuple[str, ...] = ()


def here() -> tuple[str, str]:
    """Name of this host, and which of its boots this is; "" where the system does not say."""
    try:
        boot = _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return socket.gethostname(), boot


@contextlib.contextmanager
def held(folder: Path, kind: str, keys: Sequence[str] = ()) -> Iterator[Path]:
    """A folder of our own below `folder`, leased for as long as the block runs; removed on leaving.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    own = folder / uuid.uuid4().hex
    host, boot = here()
    lease = Lease(kind=kind, host=host, boot=boot, keys=tuple(keys))
    path = own / NAME
    descriptor = _published(path, msgspec.json.encode(lease))
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, ended), daemon=True, name="deploykit-lease")
    beat.start()
    try:
        yield own
    finally:
        ended.set()
        beat.join()
        shutil.rmtree(own, ignore_errors=True)
        os.close(descriptor)


def _published(path: Path, data: bytes) -> int:
    """A lease's file, locked before it has its name: whoever finds it without its lock knows that its holder is dead.

    Returns:
        The descriptor that the lock lasts as long as.
    """
    made = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True)
        with made.open("xb") as file:
            descriptor = os.dup(file.fileno())
            with contextlib.suppress(OSError):  # a file system without locks: the beat alone tells
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                file.write(data)
                file.flush()
                made.rename(path)
            except OSError:
                os.close(descriptor)
                raise
    except OSError as error:
        shutil.rmtree(path.parent, ignore_errors=True)
        message = f"cannot write {path}: {error.strerror or error}"
        raise ArtifactError(message, hint="check space and permissions") from error
    return descriptor


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)  # `None` as times: the file system's own clock


def living(folder: Path) -> list[tuple[Path, Lease]]:
    """Leased folders below `folder` whose holders live, or may."""
    return [(path, lease) for path, lease, alive in _all(folder) if alive and lease is not None]


def sweep(folder: Path) -> list[Path]:
    """Remove what dead holders left below `folder`.

    Returns:
        The folders that were removed.
    """
    if not folder.is_dir():
        return []
    now = _now(folder)
    gone = [path for path, _, alive in _all(folder) if not alive]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*"):  # files that somebody was about to remove
        with contextlib.suppress(OSError):
            if path.is_file() and now - path.stat().st_mtime > EXPIRY_S:
                path.unlink()
    return gone


def _all(folder: Path) -> Iterator[tuple[Path, Lease | None, bool]]:
    if not folder.is_dir():
        return
    now = _now(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            lease = _read(path / NAME)
            yield path, lease, _alive(path, lease, now)


def _read(path: Path) -> Lease | None:
    try:
        return read_json(path, Lease)
    except DeploykitError:
        return None


def _alive(path: Path, lease: Lease | None, now: float) -> bool:
    """A folder whose lease cannot be read is in the making, or a kill left it: its age tells."""
    file = path if lease is None else path / NAME
    if lease is not None and (lease.host, lease.boot) == here() and lease.boot:
        locked = _locked(file)
        if locked is not None:
            return locked
    try:
        return now - file.stat().st_mtime < EXPIRY_S
    except OSError:
        return False


def _locked(path: Path) -> bool | None:
    """Whether another process of this kernel holds the lock; None where that cannot be told.

    Several may look at once, and none of them takes another for the holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _now(folder: Path) -> float:
    """The time as the file system has it: of another machine, perhaps, whose clock goes otherwise."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror or error}", hint="check permissions") from error


def wait_while(folder: Path, kind: str, *, timeout_s: float = EXPIRY_S * 5) -> None:
    """Wait until no living lease of that kind is left below `folder`.

    Raises:
        ArtifactError: it took longer than `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    while any(lease.kind == kind for _, lease in living(folder)):
        if time.monotonic() > end:
            raise ArtifactError(f"{kind} has been at work in {folder} for {timeout_s:.0f} s", hint="try again later")
        time.sleep(0.2)
