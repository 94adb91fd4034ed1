"""`Lease`: one client at a time uses a board, as the board itself says, and a dead client's turn ends by itself.

A lease is a link of the board's file system whose name is a number and whose target says whose it is and until when:
making a link of a name that is there fails, on every file system, and it is never there without its content. The one
with the highest number counts. Whoever finds it expired, given up, or of another boot makes the next one, looks again,
and has the lease where no later one is there and the earlier was not renewed in between; so that of any number of
clients at most one has it, and none needs a lock that it could leave behind. The clock is the board's time since boot.

The holder renews it while it lives. Where it is taken over, what the earlier holder left running is ended first.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import shlex
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from deploykit.contract.errors import DeviceError
from deploykit.places.line import Line, LostError
from deploykit.places.transfer import FOLDER

TTL_S = 45
"""How long a lease lasts after it was last renewed."""
LONGEST_S = 2 * TTL_S
"""No lease lasts longer; one that says so was written before the board's clock was set back, or by nobody of ours."""
_RENEW_S = 10.0
_LOOK_S = 1.0
_LEASES = f"{FOLDER}/lease"
_HELD = 73

# Words of a link's target: token, until, boot, owner. `beat` renews it; `free` gives it up.
_SCRIPT = """
umask 077; L={leases}; mkdir -p "$L" {jobs}
now() {{ if [ -r /proc/uptime ]; then cut -d. -f1 /proc/uptime; else date +%s; fi; }}
boot() {{ cat {boot_id} 2>/dev/null || sysctl -n kern.boottime 2>/dev/null | tr -cd 0-9 || echo none; }}
top() {{ t=0; for f in "$L"/[1-9]*; do n=${{f##*/}}; case $n in *[!0-9]*) continue;; esac
  [ -L "$f" ] && [ "$n" -gt "$t" ] && t=$n; done; echo "$t"; }}
part() {{ readlink "$L/$1" 2>/dev/null | cut -d: -f"$2"; }}
number() {{ case $1 in ''|0*|*[!0-9]*) echo 0;; *) echo "$1";; esac; }}
until_of() {{ u=$(number "$(part "$1" 2)"); b=$(number "$(cat "$L/$1.beat" 2>/dev/null)"); [ "$b" -gt "$u" ] && u=$b
  echo "$u"; }}
live() {{ [ "$1" -gt 0 ] && [ ! -e "$L/$1.free" ] && [ "$(part "$1" 3)" = "$(boot)" ] \\
  && left=$(( $(until_of "$1") - $(now) )) && [ "$left" -gt 0 ] && [ "$left" -le {longest} ]; }}
end_job() {{ [ -r /proc/self/cmdline ] || return 0; p=$(cat "$1/pid" 2>/dev/null) || return 0
  tr '\\0' ' ' < "/proc/$p/cmdline" 2>/dev/null | grep -q "$1" || return 0
  kill -TERM "-$p" 2>/dev/null; sleep 1; kill -KILL "-$p" 2>/dev/null; }}
end_others() {{ for j in {jobs}/*; do [ -d "$j" ] && [ ! -f "$j/answer" ] || continue
  case ${{j##*/}} in "$1".*) ;; *) end_job "$j";; esac; done; return 0; }}
say_held() {{ echo "held $(part "$1" 4) $(( $(until_of "$1") - $(now) ))"; exit {held}; }}
"""
_TAKE = """
t=$(top); live "$t" && say_held "$t"
n=$((t + 1))
ln -s {token}:$(( $(now) + {ttl} )):$(boot):{owner} "$L/$n" 2>/dev/null || say_held "$n"
if [ "$(top)" -gt "$n" ] || live "$t"; then rm -f "$L/$n"; say_held "$(top)"; fi
for f in "$L"/*; do m=${{f##*/}}; m=${{m%%.*}}; case $m in *[!0-9]*) continue;; esac
  [ "$m" -lt "$n" ] && rm -f "$f"; done
find {jobs} -mindepth 1 -maxdepth 1 -mtime +1 -exec rm -rf {{}} + 2>/dev/null
end_others {token}; echo "taken $n"
"""
_RENEW = """
n={number}; [ ! -e "$L/$n.free" ] || {{ echo released; exit 0; }}
[ "$(part "$n" 1)" = {token} ] && [ "$(top)" = "$n" ] && live "$n" || {{ echo lost; exit 0; }}
echo $(( $(now) + {ttl} )) > "$L/$n.{token}" && mv -f "$L/$n.{token}" "$L/$n.beat"
if [ "$(top)" = "$n" ] && [ ! -e "$L/$n.free" ]; then echo kept; else echo lost; fi
"""
_FREE = """
t=$(top); [ -z {token} ] || [ "$(part "$t" 1)" = {token} ] || {{ echo other; exit 0; }}
if live "$t"; then echo "freed $(part "$t" 4)"; else echo none; fi
[ "$t" -gt 0 ] && : > "$L/$t.free"; end_others -
"""


class BusyError(DeviceError):
    """Another client has the board all the time."""


@dataclass(frozen=True)
class Clock:
    """Where a board tells which of its boots this is.

    Attributes:
        boot_id: the file; another system's boot is told by `sysctl`.
    """

    boot_id: str = "/proc/sys/kernel/random/boot_id"


JOBS = f"{FOLDER}/jobs"


def script(clock: Clock) -> str:
    """Functions of the shell that tell of leases and of what runs: `boot`, `now`, `live`, `end_job`."""
    return _SCRIPT.format(leases=_LEASES, jobs=JOBS, boot_id=shlex.quote(clock.boot_id), held=_HELD, longest=LONGEST_S)


class Lease:
    """The right to use a board; a context manager.

    Args:
        line: to the board.
        name: of the board, for messages.
        clock: see `Clock`.
        wait_s: how long to wait for another client.
        ttl_s: how long it lasts without being renewed; `LONGEST_S` at most.

    Attributes:
        token: that is this lease's alone.

    Raises:
        BusyError: another client has it all the time.
        DeviceError: the board cannot be reached.
    """

    def __init__(
        self, line: Line, name: str, clock: Clock | None = None, *, wait_s: float = 120.0, ttl_s: int = TTL_S
    ) -> None:
        self._line, self._name, self._clock = line, name, clock or Clock()
        self._wait_s, self._ttl_s = wait_s, min(ttl_s, LONGEST_S)
        self.token, self._number = secrets.token_hex(8), 0
        self._over, self._lost = threading.Event(), ""

    def __enter__(self) -> Self:
        self._take(self._wait_s)
        self._over.clear()
        threading.Thread(target=self._keep, daemon=True, name=f"lease of {self._name}").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with contextlib.suppress(DeviceError):  # where the board has gone, the lease ends by itself
            self._run(_FREE)

    def check(self) -> None:
        """Refuse to go on where the lease has ended.

        Raises:
            DeviceError: somebody released it; or it expired while the line was cut, and another client has it.
        """
        if self._lost:
            message = f"the lease of {self._name} has ended: {self._lost}"
            raise DeviceError(message, hint="what was asked for may have been stopped; try again")

    def renew(self) -> None:
        """Make it last anew, now.

        Raises:
            DeviceError: it has ended, and another client has the board.
        """
        self._renew()
        self.check()

    def _take(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            words = self._run(_TAKE)
            if words[:1] == ["taken"]:
                self._number = int(words[1])
                return
            if words[:1] != ["held"]:
                message = f"{self._name} answers a lease with {' '.join(words)[:200]!r}"
                hint = (
                    f"where its shell prints something before each command (~/.bashrc), let it not; {self._line.hint}"
                )
                raise DeviceError(message, hint=hint)
            if time.monotonic() >= deadline:
                owner, left = [*words[1:], "another", "0"][:2]
                message = f"{self._name} is in use by {owner}, whose lease ends in {left} s unless it goes on"
                raise BusyError(message, hint=f"wait, or end what it does: deploykit device release {self._name}")
            time.sleep(_LOOK_S)

    def _keep(self) -> None:
        while not self._over.wait(min(_RENEW_S, self._ttl_s / 4)):
            try:
                self._renew()
            except LostError:
                continue  # it lasts for a while
            except DeviceError as error:
                self._lost = error.message
            if self._lost:
                return

    def _renew(self) -> None:
        said = self._run(_RENEW)[:1]
        if said == ["kept"] or self._over.is_set():
            return
        if said == ["released"]:
            raise DeviceError("somebody released it")
        self._take(0.0)  # it expired while the line was cut; perhaps nobody has it

    def _run(self, body: str) -> list[str]:
        text = body.format(token=self.token, ttl=self._ttl_s, owner=_owner(), number=self._number, jobs=JOBS)
        done = self._line.run(script(self._clock) + text, check=False)
        if done.returncode != _HELD:
            self._line.check(done)
        return done.stdout.decode(errors="replace").split()


def release(line: Line, clock: Clock | None = None) -> str:
    """End whatever lease there is on a board, and what its holder left running.

    Returns:
        Whose it was; "" where there was none.
    Raises:
        DeviceError: the board cannot be reached.
    """
    text = script(clock or Clock()) + _FREE.format(token="''")
    words = line.run(text).stdout.decode(errors="replace").split()
    return words[1] if words[:1] == ["freed"] and len(words) > 1 else ""


def _owner() -> str:
    """Who asks, in characters that mean nothing to a shell."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return re.sub(r"[^A-Za-z0-9_.@-]", "-", f"{user}@{socket.gethostname()}-{os.getpid()}")[:80]
