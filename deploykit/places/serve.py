"""The server of the session protocol: `python -m deploykit.places.serve [ARTIFACT]`, on a board or in a child process.

It opens one artifact with the toolchain that is installed here and answers frames on standard input, until that ends.
It serves whoever started it: there is no network in it. Whether native code may run was decided on the other side.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from deploykit._version import __version__
from deploykit.artifact.manifest import Manifest
from deploykit.contract.errors import DeploykitError, UsageError
from deploykit.contract.host import this_host
from deploykit.contract.session import Session
from deploykit.places import frames
from deploykit.places.frames import Channel, Frame
from deploykit.places.memory import peak_bytes, resident_bytes
from deploykit.places.place import Here, Verdict
from deploykit.plugin.artifact import Artifact, load

_GRACE_S = 10.0
_BY_CALLER = "by whoever started this process"


class Server:
    """Answers requests.

    Args:
        fixed: the artifact that OPEN opens, whatever it names; None for the one that it names.
    """

    def __init__(self, fixed: Path | None = None) -> None:
        self._fixed = fixed
        self._session: Session | None = None
        self._before_bytes = 0

    def answer(self, request: Frame) -> Frame:
        """The answer; what goes wrong is one, too."""
        known = self._answers.get(request.kind)
        if known is None:
            message = f"a request of kind {request.kind} is not known here"
            return frames.failure(message, "install the same version on both machines")
        try:
            return known(self, request)
        except DeploykitError as error:
            return frames.failure(error.message, error.hint or "", type(error).__name__)
        except MemoryError:
            return frames.failure("there is not enough memory for it", "close other programs, or run a smaller batch")
        except Exception as error:  # whatever a runtime raises, the other side must hear of it
            return frames.failure(f"{type(error).__name__}: {error}", "", "DeploykitError")

    def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            self._session.close()

    def _hello(self, request: Frame) -> Frame:
        return Frame(frames.ANSWER, {"version": __version__, "host": msgspec.to_builtins(this_host())})

    def _preflight(self, request: Frame) -> Frame:
        artifact = _being(Path(), request.facts)
        found = Verdict(artifact.preflight(), artifact.plugin().evidence(artifact))
        return Frame(frames.ANSWER, msgspec.to_builtins(found))

    def _open(self, request: Frame) -> Frame:
        self.close()
        path = self._fixed or Path(str(request.facts["path"])).expanduser()
        artifact = _being(path, request.facts) if "manifest" in request.facts else load(path, allow_native=True)
        self._before_bytes = resident_bytes()
        # This process is the one that may crash.
        self._session = artifact.at(Here(first=False)).open(threads=request.facts.get("threads"))
        return Frame(frames.ANSWER, {"threads": self._session.threads})

    def _run(self, request: Frame) -> Frame:
        return Frame(frames.ANSWER, {}, self._opened().run(request.tensors))

    def _profile(self, request: Frame) -> Frame:
        session = self._opened()
        times = session.times_ms(request.tensors, runs=request.runs) if request.runs else []
        ops = session.op_times(request.tensors, runs=request.op_runs) if request.op_runs else ()
        found = {
            "run_ms": np.asarray(times, np.float64),
            "op_us": np.asarray([one.median_us for one in ops], np.float64),
            "peak_bytes": np.asarray([max(0, peak_bytes() - self._before_bytes)], np.float64),
        }
        return Frame(frames.ANSWER, {"ops": [[one.name, one.op, one.module_path] for one in ops]}, found)

    def _opened(self) -> Session:
        if self._session is None:
            raise UsageError("no artifact is open here")
        return self._session

    _answers: ClassVar[dict[int, Callable[[Server, Frame], Frame]]] = {
        frames.HELLO: _hello,
        frames.PREFLIGHT: _preflight,
        frames.OPEN: _open,
        frames.RUN: _run,
        frames.PROFILE: _profile,
    }


def _being(path: Path, facts: dict[str, Any]) -> Artifact:
    """The artifact of a manifest that was sent: of files that the other side has checked, or that are not here yet."""
    return Artifact(path, Manifest.from_json(str(facts["manifest"]).encode()), vouched=_BY_CALLER)


def main(fixed: Path | None = None) -> None:
    """Serve until CLOSE, or until the other side has gone."""
    main_of(Server(fixed))


def main_of(server: Server) -> None:
    """Let a server answer what comes on standard input, until CLOSE, or until the other side has gone."""
    channel, busy = Channel(), _Busy()
    threading.Thread(target=_end_with_parent, args=(busy,), daemon=True).start()
    try:
        while (request := channel.receive()) is not None and request.kind != frames.CLOSE:
            with busy:
                channel.send(server.answer(request))
    except frames.OtherVersionError as other:
        channel.send(frames.failure(str(other)))  # in our version, which says all
    server.close()


class _Busy:
    """Since when a request is being answered; 0 where none is."""

    def __init__(self) -> None:
        self.since_s = 0.0

    def __enter__(self) -> None:
        self.since_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.since_s = 0.0


def _end_with_parent(busy: _Busy) -> None:
    """End this process where the other side has gone and what it asked for goes on: nobody will read the answer.

    An idle server finds that out itself. The thread costs nothing: the system wakes it when the pipe is closed.
    """
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(0, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    time.sleep(_GRACE_S)
    if busy.since_s:
        os._exit(1)  # the main thread is inside a runtime


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
