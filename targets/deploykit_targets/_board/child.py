"""A child process that answers over pipes, on this machine, under emulation or at the other end of SSH.

What can go wrong with it (it dies, it hangs, the line is cut) ends every wait and becomes an error in words.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from deploykit.errors import DeviceError

_LOG_CHARACTERS = 1500
_CHUNK_BYTES = 1 << 20
_GOODBYE_S = 10


class Child:
    """Starts a command; `send` and `receive` bytes until `close`.

    Args:
        command: program and arguments.
        what: it is, for messages.
        explain: turns an exit code and what was printed to standard error into the end of a sentence ("was killed by
            ..."); "" where it cannot tell.
        environment: of the process; None for ours.
        timeout_s: how long one `receive` may take.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        what: str,
        explain: Callable[[int, str], str],
        environment: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> None:
        self._what, self._explain, self._timeout_s = what, explain, timeout_s
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=None if environment is None else dict(environment),
                bufsize=0,
            )
        except OSError as error:
            self._log.close()
            raise DeviceError(f"{what} cannot be started: {error}") from error

    def send(self, *parts: bytes | memoryview) -> None:
        """Write to its standard input; that it is gone is for `receive` to say."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + self._timeout_s
        with contextlib.suppress(BrokenPipeError):
            for part in parts:
                self._write(self._process.stdin.fileno(), memoryview(part), deadline)

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes of its standard output.

        Raises:
            DeviceError: it ended or took too long.
        """
        assert self._process.stdout is not None
        deadline, found = time.monotonic() + self._timeout_s, bytearray()
        while len(found) < count:
            self._wait(deadline, reading=self._process.stdout.fileno())
            chunk = os.read(self._process.stdout.fileno(), min(_CHUNK_BYTES, count - len(found)))
            if not chunk:
                raise self._ended()
            found += chunk
        return bytes(found)

    def receive_line(self, limit: int = 4096) -> str:
        """One line, without its end."""
        line = bytearray()
        while len(line) < limit and not line.endswith(b"\n"):
            line += self.receive(1)
        return line.decode(errors="replace").rstrip("\n")

    def close(self) -> None:
        """Close its input, and end it where it does not end itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(timeout=_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._kill()
        self._log.close()

    def _write(self, descriptor: int, data: memoryview, deadline: float) -> None:
        os.set_blocking(descriptor, False)
        while data:
            self._wait(deadline, writing=descriptor)
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(descriptor, data[:_CHUNK_BYTES]) :]

    def _wait(self, deadline: float, *, reading: int | None = None, writing: int | None = None) -> None:
        left = max(0.0, deadline - time.monotonic())
        wanted = [fd for fd in (reading,) if fd is not None], [fd for fd in (writing,) if fd is not None]
        if not any(select.select(*wanted, [], left)):
            self._kill()
            raise DeviceError(f"{self._what} did not answer within {self._timeout_s:g} s")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ended(self) -> DeviceError:
        try:
            code = self._process.wait(timeout=_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._kill()
            return DeviceError(f"{self._what} closed its output and did not end")
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()[-_LOG_CHARACTERS:]
        return DeviceError(f"{self._what} {self._explain(code, said) or f'ended with code {code}'}", hint=said or None)
