"""Artifacts by name and version: verified before they serve, replaced while they serve, never half.

An artifact is hashed, run on its golden inputs and compared with its golden outputs before a request reaches it; what
does not pass is refused: at the start the server does not start, later the one that serves goes on serving. Exports
replace artifacts whole, so that a folder that is there is an artifact; one that is gone is no order to stop serving.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.artifact import manifest as layout
from deploykit.artifact.manifest import FAILED
from deploykit.contract.errors import ArtifactError, DeploykitError, UsageError
from deploykit.contract.session import Session
from deploykit.plugin.artifact import Artifact, load
from deploykit_serving.batcher import Batcher, Watcher, is_batched
from deploykit_serving.refusals import Refusal
from deploykit_serving.rows import prove_independent_rows
from deploykit_serving.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_GIVEN = re.compile(r"(?P<name>[^=:/\\]+)(:(?P<version>[^=:/\\]+))?=(?P<path>.+)", re.DOTALL)
_ATTEMPTS = 3
_POLL_S = 1.0
Identity = tuple[int, ...]
Event = Callable[..., None]


@dataclass(frozen=True)
class Served:
    """An artifact to serve, as it was asked for.

    Attributes:
        name, version: as clients call it.
        path: its folder.
    """

    name: str
    version: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> Served:
        """Read `FOLDER`, `NAME=FOLDER` or `NAME:VERSION=FOLDER`; the name of a folder alone is the folder's.

        Raises:
            UsageError: a name or version that cannot stand in a URL.
        """
        found = None if os.path.exists(text) else _GIVEN.fullmatch(text)
        path = Path(found["path"] if found else text)
        name = found["name"] if found else path.resolve().name
        version = (found["version"] if found else None) or "1"
        for what, value in (("name", name), ("version", version)):
            if not _NAME.fullmatch(value):
                raise UsageError(
                    f"{value!r} cannot be the {what} of a served model: letters, digits, '.', '_' and '-' can",
                    hint=f"deploykit serve NAME:VERSION={path}",
                )
        return cls(name, version, path)


@dataclass(frozen=True)
class Trust:
    """What vouches for artifacts: asked of each that is loaded, also of those that take the place of another.

    Attributes:
        key: PEM file of a public key that must have signed them; None asks for no signature.
        allow_native: native code in them may run without one.
    """

    key: str | None = None
    allow_native: bool = False

    def load(self, path: Path) -> Artifact:
        """Load an artifact.

        Raises:
            ArtifactError: it is damaged, or not signed by the key.
        """
        return load(path, key=self.key, allow_native=self.allow_native)


def version_order(version: str) -> tuple[tuple[bool, int, str], ...]:
    """Key by which versions are sorted: numbers by value (10 comes after 9, 1.10 after 1.9), before other text."""
    parts = re.findall(r"\d+|\D+", version)
    return tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


class Model:
    """An opened artifact with its batcher.

    Attributes:
        served: what was asked for.
        artifact: as it was loaded.
        batcher: runs its requests.
    """

    def __init__(self, served: Served, artifact: Artifact, batcher: Batcher) -> None:
        self.served = served
        self.artifact = artifact
        self.batcher = batcher
        self.fingerprint = artifact.fingerprint

    @property
    def platform(self) -> str:
        """Toolchain and precision, as the protocol's metadata tells them."""
        return f"{self.artifact.manifest.toolchain}_{self.artifact.precision}"

    @classmethod
    def open(
        cls, served: Served, settings: Settings, watcher: Watcher | None = None, trust: Trust | None = None
    ) -> Model:
        """Verify an artifact, open it, and show that it can be served so.

        Raises:
            ArtifactError: it is damaged, or was exported as one that misses a gate.
            ParityError: this machine computes something else than the one that made it.
            UsageError: it cannot be batched, and that was asked for.
            MissingDependencyError, DeviceError: its runtime, or what it needs, is not here.
        """
        artifact = (trust or Trust()).load(served.path)
        if artifact.status == FAILED:
            raise ArtifactError(
                f"{served.path} missed a gate on export, and is not served",
                hint=f"deploykit inspect {served.path} says which; export it again",
            )
        batched = is_batched(artifact.inputs, artifact.outputs)
        if settings.max_batch > 1 and not batched:
            raise UsageError(
                f"{served.path} has a fixed batch axis: requests cannot share a run",
                hint="serve it with --max-batch 1, or export it with --dynamic-batch",
            )
        artifact.verify()
        sessions = _sessions(artifact, settings)
        try:
            for session in dict.fromkeys(sessions):
                session.run(artifact.golden().inputs[0])
            if settings.max_batch > 1:
                prove_independent_rows(artifact, sessions[0])
        except BaseException:
            for session in sessions:
                session.close()
            raise
        batcher = Batcher(
            sessions,
            max_batch=settings.max_batch,
            wait_s=settings.wait_s,
            max_queue=settings.max_queue,
            batched=batched,
            watcher=watcher,
        )
        return cls(served, artifact, batcher)

    def metadata(self, versions: Sequence[str]) -> dict[str, Any]:
        """What the protocol's model metadata says."""
        from deploykit_serving.datatypes import datatype_of, shape_of

        def tensors(specs: Any) -> list[dict[str, Any]]:
            return [{"name": s.name, "datatype": datatype_of(s), "shape": shape_of(s)} for s in specs]

        return {
            "name": self.served.name,
            "versions": list(versions),
            "platform": self.platform,
            "inputs": tensors(self.artifact.inputs),
            "outputs": tensors(self.artifact.outputs),
        }


def _sessions(artifact: Artifact, settings: Settings) -> list[Session]:
    """One session for each instance.

    Instances of one thread share a session whose calls may run beside each other: it runs on the thread that calls, so
    that a copy would cost its memory and bring nothing. With more threads each has a pool of its own.
    """
    first = artifact.open(threads=settings.threads_each)
    if first.concurrent and settings.threads_each == 1:
        return [first] * settings.instances
    sessions = [first]
    try:
        while len(sessions) < settings.instances:
            sessions.append(artifact.open(threads=settings.threads_each))
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return sessions


class _Slot:
    """A name and version, what serves under it, and which folder that was."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.model: Model | None = None
        self.identity: Identity = ()
        self.tried: tuple[Identity, frozenset[Identity]] | None = None


class Repository:
    """All models of a server.

    Args:
        served: what to serve; a name and version once.
        settings: of each.
        watcher_of: gives who is told of the runs of a name and version.
        trust: what vouches for the artifacts.
        event: `event(name, **facts)` is called for what the log should tell.
    Raises:
        UsageError: two of one name and version, or none at all.
    """

    def __init__(
        self,
        served: Sequence[Served],
        settings: Settings,
        *,
        watcher_of: Callable[[Served], Watcher | None] = lambda _: None,
        trust: Trust | None = None,
        event: Event = lambda _name, **_facts: None,
    ) -> None:
        if not served:
            raise UsageError("there is nothing to serve", hint="deploykit serve ARTIFACT")
        self.settings = settings
        self._watcher_of = watcher_of
        self._trust = trust
        self._event = event
        self._slots: dict[str, dict[str, _Slot]] = {}
        for each in served:
            versions = self._slots.setdefault(each.name, {})
            if each.version in versions:
                raise UsageError(
                    f"two artifacts are served as {each.name!r}, version {each.version!r}:"
                    f" {versions[each.version].served.path} and {each.path}",
                    hint=f"give one another version: {each.name}:2={each.path}",
                )
            versions[each.version] = _Slot(each)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- what requests ask ---------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._slots)

    def versions(self, name: str) -> list[str]:
        """Versions of a name, oldest first."""
        return sorted(self._slots.get(name, {}), key=version_order)

    @property
    def ready(self) -> bool:
        """Whether every model serves."""
        return all(slot.model is not None for slot in self._all())

    def find(self, name: str, version: str | None) -> Model:
        """The model of a name, of its newest version where none is named.

        Raises:
            Refusal: 404: there is none; 503: it is still being verified.
        """
        versions = self._slots.get(name)
        if not versions:
            raise Refusal(404, f"there is no model {name[:80]!r}", reason="unknown_model")
        chosen = self.versions(name)[-1] if version is None else version
        slot = versions.get(chosen)
        if slot is None:
            told = ", ".join(self.versions(name))
            raise Refusal(404, f"{name} has no version {chosen[:80]!r}; it has {told}", reason="unknown_model")
        if slot.model is None:
            raise Refusal(503, f"{name} is being verified", reason="loading", retry_after_s=1)
        return slot.model

    def models(self) -> list[Model]:
        """All that serve now."""
        return [slot.model for slot in self._all() if slot.model is not None]

    # -- loading, replacing, ending ------------------------------------------------------------------------------

    def load(self) -> None:
        """Verify and open everything.

        Raises:
            DeploykitError: the first that is refused; see `Model.open`.
        """
        for slot in self._all():
            if not self._stop.is_set():
                self._load_first(slot)

    def watch(self, poll_s: float = _POLL_S) -> None:
        """Look for replaced artifacts from now on, on a thread of its own."""

        def look() -> None:
            while not self._stop.wait(poll_s):
                self.refresh()

        self._thread = threading.Thread(target=look, name="deploykit-reload", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Take what was replaced since; see the top of this module for what is not taken."""
        for slot in self._all():
            found = _identity(slot.served.path)
            if found == slot.identity:
                slot.tried = None
                continue
            files = _files(slot.served.path)  # one that was refused may be a copy that is still being written
            if slot.tried == (found, files):
                continue
            slot.tried = (found, files)
            if found:
                self._replace(slot, found)
            else:
                self._event("artifact_gone", **_facts(slot.served), note="the one that was loaded goes on serving")

    def close(self) -> None:
        """Stop looking, let every batcher finish, close every session."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for slot in self._all():
            model, slot.model = slot.model, None
            if model is not None:
                model.batcher.close()

    def _all(self) -> list[_Slot]:
        return [slot for versions in self._slots.values() for slot in versions.values()]

    def _open(self, slot: _Slot) -> Model:
        return Model.open(slot.served, self.settings, self._watcher_of(slot.served), self._trust)

    def _load_first(self, slot: _Slot) -> None:
        for attempt in range(_ATTEMPTS):
            identity = _identity(slot.served.path)
            try:
                slot.model = self._open(slot)
            except ArtifactError:
                if attempt == _ATTEMPTS - 1 or identity == _identity(slot.served.path):
                    raise
                continue  # it was replaced while it was read
            slot.identity = identity
            self._event("model_ready", **_facts(slot.served), fingerprint=slot.model.fingerprint)
            return

    def _replace(self, slot: _Slot, identity: Identity) -> None:
        """Open the new one beside the old one, let new requests have it, then end the old one."""
        try:
            model = self._open(slot)
        except DeploykitError as error:
            self._event("reload_refused", **_facts(slot.served), error=error.message)
            return
        except Exception as error:  # a defect must not end the thread: nothing would be taken any more
            self._event("reload_refused", **_facts(slot.served), error=f"{type(error).__name__}: {error}"[:500])
            return
        if self._stop.is_set():
            model.batcher.close()
            return
        old, slot.model, slot.identity = slot.model, model, identity
        self._event("model_replaced", **_facts(slot.served), fingerprint=model.fingerprint)
        if old is not None:
            old.batcher.close()


def _facts(served: Served) -> dict[str, str]:
    return {"model": served.name, "version": served.version}


def _identity(folder: Path) -> Identity:
    """Which artifact lies there, as cheaply as once a second allows; empty where none does."""
    try:
        own, manifest = folder.stat(), (folder / layout.MANIFEST_NAME).stat()
    except OSError:
        return ()
    return (own.st_ino, manifest.st_ino, manifest.st_size, manifest.st_mtime_ns)


def _files(folder: Path) -> frozenset[Identity]:
    """What lies in a folder, and since when."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.stat(follow_symlinks=False) for entry in entries]
    except OSError:
        return frozenset()
    return frozenset((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)
