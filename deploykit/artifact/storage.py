"""Files that are either whole or absent: temporary sibling, fsync, re-read, rename.

Used for artifacts (folders) and for single files; nothing here knows what is in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from deploykit.contract.errors import ArtifactError, DeploykitError, reason_of

Check = Callable[[Path], None]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
_ATTEMPTS = 20
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(
    path: Path, data: bytes, *, error: type[DeploykitError] = ArtifactError, check: Check | None = None
) -> None:
    """Write `path` so that a reader or a crash sees the old or the new content, never a part.

    Temporary files of killed writers of the same path are removed first.

    Args:
        error: class of the refusal.
        check: called with the written file before it takes its place; may refuse it.
    Raises:
        DeploykitError: of the class `error`: the folder cannot be written, the disk is full, re-reading gives other
            bytes, or `path` is a link, folder or device, which is left alone.
    """
    temporary = path.with_name(f".{path.name}.{_stamp()}.part")
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise error(f"{path} is a link, folder or device; it is left alone", hint="choose another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead_parts(path)
        with temporary.open("xb") as file:
            _try_lock(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if sha256_of(temporary) != hashlib.sha256(data).hexdigest():
                raise error(f"{path.name} reads back differently than it was written; the disk may be failing")
            if check is not None:
                check(temporary)
            temporary.replace(path)
    except (OSError, ValueError) as cause:  # ValueError: a name with NUL
        raise error(f"cannot write {path}: {reason_of(cause)}", hint="check space and permissions") from cause
    finally:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink()


@contextlib.contextmanager
def staging_folder(destination: Path, check: Check | None = None) -> Iterator[Path]:
    """A temporary sibling of `destination`, removed on leaving with what is then in it; see `publish_folder`.

    Left-overs of killed processes for the same destination are removed first. The folder is locked while it is in
    use: what may be live, in another container or on another machine too, is never taken for a left-over.

    Args:
        check: as for `publish_folder`.
    Raises:
        ArtifactError: the parent folder cannot be written; or the disk refused what the block wrote, here or elsewhere.
    """
    try:
        _remove_left_overs(destination, check)
        staging, lock = _new_staging(destination)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot create a folder beside {destination}: {reason_of(error)}", hint="choose another output="
        ) from error
    try:
        yield staging
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise ArtifactError(f"cannot write {destination}: {error.strerror}", hint="check space on the disk") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def publish_folder(staging: Path, destination: Path, check: Check | None = None) -> None:
    """Make `staging` appear as `destination`, replacing an older artifact; of several writers the last one wins.

    Args:
        check: called with what is to be replaced, before and after it made way; raises `ArtifactError` where that
            must be left alone, and it is then where it was. None replaces any folder.
    Raises:
        ArtifactError: the disk refuses, or `check` does; what was there is left as it was.
    """
    try:
        for path in sorted(staging.rglob("*")):
            _fsync(path)
        _fsync(staging)
        _replace(staging, destination, check or _anything)
        _fsync(destination.parent)
    except OSError as error:
        raise ArtifactError(f"cannot publish {destination}: {error.strerror or error}") from error


def is_part(name: str, of: Collection[str]) -> bool:
    """Whether `name` is what `write_file` writes to before one of the files `of` takes its content, older names too."""
    return any(re.fullmatch(rf"\.{re.escape(path)}\.({_STAMP}|[0-9a-f]{{8}})\.part", name) for path in of)


def _anything(_: Path) -> None:
    """Refuses nothing."""


def _new_staging(destination: Path) -> tuple[Path, int]:
    """A folder of our own and the descriptor that locks it."""
    for _ in range(_ATTEMPTS):
        staging = destination.with_name(f".{destination.name}.staging-{_stamp()}")
        staging.mkdir(parents=True)
        try:
            lock = os.open(staging, os.O_RDONLY)
        except FileNotFoundError:  # taken for a left-over before it was locked
            continue
        _lock(lock)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(staging), os.fstat(lock)):
                return staging, lock
        os.close(lock)
    raise OSError(errno.EAGAIN, "other processes remove what is made there")


def _replace(staging: Path, destination: Path, check: Check) -> None:
    """Rename where nothing is there, else exchange; start over when another writer changed that meanwhile."""
    for attempt in range(_ATTEMPTS):
        try:
            staging.rename(destination)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED or attempt == _ATTEMPTS - 1:
                raise
        if os.path.lexists(destination):
            check(destination)
        if _exchange(staging, destination, check):
            return


def _exchange(staging: Path, destination: Path, check: Check) -> bool:
    """Swap the two folders (the older one goes with the staging folder); False where `destination` is gone."""
    try:
        _exchange_at_once(staging, destination)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise
        return _exchange_in_turn(staging, destination, check)
    try:
        check(staging)
    except ArtifactError:  # it was put there since the first look
        _exchange_at_once(staging, destination)
        raise
    return True


def _exchange_at_once(staging: Path, destination: Path) -> None:
    """Linux swaps two names in one step, so that a reader always finds an artifact.

    Raises:
        OSError: ENOSYS on other systems, EINVAL on file systems that cannot.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(destination), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(destination))


def _exchange_in_turn(staging: Path, destination: Path, check: Check) -> bool:
    """Two renames; for a moment nothing is there, and `_remove_left_overs` mends it should we be killed just then."""
    retired = destination.with_name(f".{destination.name}.retired-{_stamp()}")
    try:
        destination.rename(retired)
    except FileNotFoundError:
        return False
    try:
        check(retired)
    except ArtifactError:
        retired.rename(destination)
        raise
    try:
        staging.rename(destination)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            retired.rename(destination)
            raise
        shutil.rmtree(retired, ignore_errors=True)  # another writer was quicker: theirs replaced it
        return False
    shutil.rmtree(retired, ignore_errors=True)
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_left_overs(destination: Path, check: Check | None) -> None:
    """Remove staging folders of dead processes; bring back an artifact that a kill left between two renames."""
    for kind in ("staging", "retired"):
        for path in _siblings(destination, rf"\.{re.escape(destination.name)}\.{kind}-{_STAMP}"):
            with _dead(path) as dead:
                if not dead:
                    continue
                if kind == "staging":
                    shutil.rmtree(path, ignore_errors=True)
                elif not os.path.lexists(destination):
                    path.rename(destination)
                else:
                    with contextlib.suppress(ArtifactError):  # what is no artifact stays
                        (check or _anything)(path)
                        shutil.rmtree(path, ignore_errors=True)


def remove_dead_parts(path: Path) -> None:
    """Remove what killed writers of `path` left beside it; those of live ones stay."""
    for part in _siblings(path, rf"\.{re.escape(path.name)}\.{_STAMP}\.part"):
        with _dead(part) as dead:
            if dead:
                part.unlink(missing_ok=True)


def _siblings(path: Path, pattern: str) -> list[Path]:
    """What lies beside `path` and is named by us; links are not ours."""
    try:
        with os.scandir(path.parent) as found:
            names = [entry.name for entry in found if re.fullmatch(pattern, entry.name) and not entry.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path.with_name(name) for name in sorted(names)]


# -- who is alive -----------------------------------------------------------------------------------------------
# A process id says nothing in another PID namespace or on another machine. What is in use is held open and locked
# (`flock`, which ends with its process however that ends, and counts for all processes of one kernel); its name says
# which machine and which of its boots wrote it. Locked, or of another machine: it may be live, and stays.

_STAMP = r"([0-9a-f]{8})-([0-9a-f]{8})-[0-9a-f]{12}"


def _stamp() -> str:
    return f"{_machine()}-{_boot()}-{uuid.uuid4().hex[:12]}"


@functools.cache
def _machine() -> str:
    return _short(socket.gethostname() + _content("/etc/machine-id"))


@functools.cache
def _boot() -> str:
    return _short(_content("/proc/sys/kernel/random/boot_id") or f"{socket.gethostname()} {uuid.getnode()}")


def _booted_at() -> float:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.time() - time.clock_gettime(clock)


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]


@contextlib.contextmanager
def _dead(path: Path) -> Iterator[bool]:
    """Whether no process can be using `path` any more; it stays locked by us inside the block."""
    found = re.search(_STAMP, path.name)
    machine, boot = found.groups() if found else ("", "")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone, or not ours to look at
        yield False
        return
    try:
        if boot == _boot():
            yield _try_lock(descriptor)
        else:
            # Started again since; virtual machines that are clones share a name, but not what happened before our boot.
            yield machine == _machine() and os.fstat(descriptor).st_mtime < _booted_at()
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Take the lock of an open file or folder; False where another holds it, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock(descriptor: int) -> None:
    """Wait for the lock, which another takes only while it looks; nothing where the file system has no locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def cache_folder() -> Path:
    """Where deploykit keeps what it can make again: `$DEPLOYKIT_CACHE`, else the user's cache folder."""
    own = os.environ.get("DEPLOYKIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deploykit"


def state_folder() -> Path:
    """Where deploykit keeps what it cannot make again: `$DEPLOYKIT_STATE`, else the user's state folder."""
    own = os.environ.get("DEPLOYKIT_STATE")
    return Path(own) if own else Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "deploykit"
