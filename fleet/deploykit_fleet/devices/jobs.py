"""`Jobs`: work that a board does by itself, while the line may be cut, and that is found when it comes back.

A job is the session protocol in files: what would be asked over a pipe lies there as one file, addressed by its hash,
and the same server (or the artifact's own program) answers it into another, which gets its name when it is whole. It
runs in a session of its own, so that nothing that ends a connection ends it. A board that was started anew meanwhile
has lost it: it is asked again, once.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deploykit.contract.errors import DeviceError
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.line import LostError
from deploykit.places.process import EndedError
from deploykit.places.transfer import FOLDER, SHELL
from deploykit_fleet.devices.lease import JOBS, Clock, Lease, script
from deploykit_fleet.devices.sensors import Sources, sampling

if TYPE_CHECKING:
    from deploykit.places.board import Board

T = TypeVar("T")

PATIENCE_S = 300.0
"""How long a board may be out of reach while it works, or starts anew."""
_POLL_S = (0.2, 2.0)  # at first, and at most
_LOG_BYTES = 4000
_DONE = re.compile(r"done ([0-9]{1,3}) ([0-9]{1,18}) ([0-9a-f]{64})")

_START = """
job={job}; [ ! -d "$job" ] || exit 0
mkdir -p {jobs}; mkdir "$job.new" 2>/dev/null; boot > "$job.new/boot"
cat > "$job.new/run" <<'END_OF_JOB'
{sampling}
( {command} ) < {request} > "$1/answer.part" 2> "$1/log"
echo $? > "$1/code"
[ -z "$sampler" ] || kill "$sampler" 2>/dev/null
mv "$1/answer.part" "$1/answer"
END_OF_JOB
mv "$job.new" "$job"
if command -v setsid >/dev/null 2>&1; then start="setsid sh"; else start="nohup sh"; fi
$start -c 'set -- "$0"; echo $$ > "$1/pid"; . "$1/run"' "$job" </dev/null >/dev/null 2>&1 &
"""
_POLL = """
job={job}
report() {{ echo "done $(cat "$job/code") $(size "$job/answer") $(hash "$job/answer" | cut -c 1-64)"; exit 0; }}
[ ! -f "$job/answer" ] || report
[ -d "$job" ] || {{ echo "gone"; exit 0; }}
[ "$(cat "$job/boot")" = "$(boot)" ] || {{ echo "rebooted"; exit 0; }}
[ -f "$job/pid" ] || {{ echo "starting"; exit 0; }}
if kill -0 "$(cat "$job/pid")" 2>/dev/null; then echo "running"; exit 0; fi
[ ! -f "$job/answer" ] || report
echo "died"
"""


@dataclass(frozen=True)
class Done:
    """What came of a job.

    Attributes:
        answers: frames, one for each request that was answered.
        sensors: what was read of the board while it worked; see `sensors.py`.
        starts: how often it was started: 2 where the board was started anew meanwhile.
    """

    answers: tuple[Frame, ...]
    sensors: str = ""
    starts: int = 1


class Jobs:
    """Starts jobs on a board that is leased, and waits for them.

    Args:
        board: there.
        lease: of it, which is checked while a job is waited for.
        clock, sources: where the board tells its boot, and of its temperature.
        patience_s: how long it may be out of reach.
    """

    def __init__(
        self,
        board: Board,
        lease: Lease,
        *,
        clock: Clock | None = None,
        sources: Sources | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._board, self._lease, self._line = board, lease, board.line
        self._clock, self._sources, self._patience_s = clock or Clock(), sources or Sources(), patience_s
        self._count = 0

    def run(self, requests: Sequence[Frame], command: str, *, what: str, samples: bool = False) -> Done:
        """Have requests answered.

        Args:
            requests: of the session protocol.
            command: for the shell there; reads requests on standard input, and answers on standard output.
            what: it is, for messages.
            samples: whether temperature and clock are read meanwhile, once a second.
        Raises:
            DeviceError: it crashed; the board was out of reach for too long, or was started anew twice; the lease has
                ended; or an answer is an error, which keeps its words.
        """
        request = self._send(requests)
        self._count += 1
        starts = 0
        while True:
            starts += 1
            job = f"{JOBS}/{self._lease.token}.{self._count}.{starts}"
            if starts > 1:  # a lease is of one boot
                self._patient(self._lease.renew, what)
            self._start(job, request, command, samples)
            said = self._wait(job, what)
            if said[0] == "done":
                break
            self._remove(job)
            if starts > 1 or said[0] == "died":
                raise self._lost(said, what)
        done = self._collect(job, said, what, starts, samples)
        self._remove(job)
        return done

    def _send(self, requests: Sequence[Frame]) -> str:
        """The requests as a file there: the same ones are there already."""
        data = b"".join(bytes(part) for request in requests for part in frames.encode(request))
        digest = hashlib.sha256(data).hexdigest()
        folder = f"{FOLDER}/requests"
        if self._board.transfer.missing(folder, {digest: digest}):
            self._board.transfer.send(data, f"{folder}/{digest}", digest)
        return f"{folder}/{digest}"

    def _start(self, job: str, request: str, command: str, samples: bool) -> None:
        """Start it, or find that it was: the line may have been cut on the way back."""
        words = {"jobs": JOBS, "job": job, "request": shlex.quote(request), "command": command}
        sampler = sampling(self._sources) if samples else "sampler="
        text = script(self._clock) + _START.format(**words, sampling=sampler)
        self._patient(lambda: self._line.run(text), "a job")

    def _wait(self, job: str, what: str) -> list[str]:
        """What became of it: done with code, size and hash; died, gone or rebooted."""
        text, pause, starting = SHELL + script(self._clock) + _POLL.format(job=job), _POLL_S[0], 0
        while True:
            self._lease.check()
            said = self._patient(lambda: self._line.run(text).stdout.decode(errors="replace").split(), what)
            if said[:1] not in (["running"], ["starting"]):
                return said or ["died"]
            starting = starting + 1 if said == ["starting"] else 0
            if starting > 20:
                return ["died"]
            time.sleep(pause)
            pause = min(1.3 * pause, _POLL_S[1])

    def _patient(self, ask: Callable[[], T], what: str) -> T:
        """Ask again while the board is out of reach."""
        deadline, pause = time.monotonic() + self._patience_s, 0.5
        while True:
            try:
                return ask()
            except LostError as error:
                self._lease.check()
                if time.monotonic() >= deadline:
                    message = f"{self._line} was out of reach for {self._patience_s:g} s while {what} ran there"
                    raise LostError(f"{message}: {error.message}", hint=error.hint) from error
                time.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _collect(self, job: str, said: list[str], what: str, starts: int, samples: bool) -> Done:
        found = _DONE.fullmatch(" ".join(said))
        if found is None:
            message = f"{self._line} lost what came of {what}: it says {' '.join(said)[:200]!r}"
            raise DeviceError(message, hint="is its disk full?")
        code, size, digest = int(found[1]), int(found[2]), found[3]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answer"
            path.touch()
            self._board.transfer.fetch(f"{job}/answer", digest, size, path)
            data = path.read_bytes()
        if code:
            raise self._board.ended(what, code, self._log(job), self._board.install_command())
        sensors = self._line.run(f"cat {job}/sensors 2>/dev/null || true").stdout.decode() if samples else ""
        return Done(decoded(data), sensors, starts)

    def _remove(self, job: str) -> None:
        """What is left of it goes with the next lease where the line is cut."""
        with contextlib.suppress(LostError):
            self._line.run(f"rm -rf {job} {job}.new", check=False)

    def _log(self, job: str) -> str:
        return self._line.run(f"tail -c {_LOG_BYTES} {job}/log", check=False).stdout.decode(errors="replace")

    def _lost(self, said: list[str], what: str) -> DeviceError:
        if said[0] == "rebooted":
            message = f"{self._line} was started anew, twice, while {what} ran there"
            return DeviceError(message, hint="look at its power and temperature")
        how = "was killed, or ended, without an answer"
        return EndedError(f"{what} on {self._line}", how, f"by somebody or for lack of memory; {self._line.hint}")


def decoded(data: bytes) -> tuple[Frame, ...]:
    """The frames of an answer.

    Raises:
        DeviceError: it is none.
    """
    at, found = 0, []

    def receive(count: int) -> bytes:
        nonlocal at
        part = data[at : at + count]
        if len(part) < count:
            raise ValueError("it ends too early")
        at += count
        return part

    try:
        while at < len(data):
            found.append(frames.decode(receive))
    except (ValueError, KeyError, TypeError) as error:
        message = f"a job gave something that is no answer: {error}"
        raise DeviceError(message, hint="install the same version of deploykit on both machines") from error
    return tuple(found)
