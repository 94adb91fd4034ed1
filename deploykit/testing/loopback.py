"""A board for tests behind a real OpenSSH server: on this machine, on a high port, with keys and a home of its own.

The user's own configuration, keys and known hosts are not touched: a program called `ssh`, for the head of the `PATH`,
adds ours to OpenSSH's. `Cutter` stands between the two and cuts connections after as many bytes as it is told.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from deploykit.contract.errors import DeviceError

ADDRESS = "127.0.0.1"
_SERVER = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
SetEnv HOME={folder}/home {environment}
AcceptEnv PYTHONPATH
"""
_CLIENT = """#!/bin/sh
unset LD_PRELOAD
exec {ssh} -F none -p {port} -i {folder}/user -o IdentitiesOnly=yes -o UserKnownHostsFile={folder}/known \\
  -o HostKeyAlias=loopback -o StrictHostKeyChecking=accept-new -o SendEnv=PYTHONPATH "$@"
"""


class Loopback:
    """The server.

    Args:
        folder: for keys, configuration and the board's home; must not be there yet.
        environment: the environment of what runs on the board.

    Raises:
        DeviceError: this machine has no OpenSSH server, or it does not start; tests skip with the message.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        found = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
        sshd, keygen, ssh = shutil.which("sshd", path=found), shutil.which("ssh-keygen"), shutil.which("ssh")
        if sshd is None or keygen is None or ssh is None:
            raise DeviceError("needs the Debian packages openssh-server and openssh-client")
        self._sshd, self._ssh, self.folder, self.home = sshd, ssh, folder, folder / "home"
        self.home.mkdir(parents=True)
        for name in ("host", "user"):
            subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        self.port = free_port()
        told = " ".join(f'"{name}={value}"' for name, value in (environment or {}).items())
        text = _SERVER.format(port=self.port, folder=folder, environment=told)
        (folder / "config").write_text(text, encoding="utf-8")
        self.start()

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        return self._process.pid

    def start(self) -> None:
        """Start it (again).

        Raises:
            DeviceError: it does not start.
        """
        if os.geteuid() == 0:  # it then wants the folder that its service script makes
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command = [self._sshd, "-D", "-e", "-f", str(self.folder / "config")]
        # As a service is started: what is preloaded into this process (a mask of CPUID, say) asks the kernel for things
        # that the sandbox of sshd ends a process for.
        bare = {"PATH": os.environ["PATH"]}
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=bare)
        for _ in range(200):
            said = (self.folder / "log").read_bytes()
            if b"Server listening" in said:
                return
            if self._process.poll() is not None:
                raise DeviceError(f"this machine's sshd does not start: {said.decode(errors='replace')[-300:]}")
            time.sleep(0.05)
        raise DeviceError("this machine's sshd does not listen within 10 s")

    def kill(self) -> None:
        """SIGKILL for the server and for every connection of it; what was started over them lives on, if it can."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name().startswith("sshd"):
                        process.kill()
        self._process.kill()
        self._process.wait()

    def write_client(self, path: Path, *, port: int | None = None) -> Path:
        """Write a program `ssh` that reaches it, through another port where one is given; give it back."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _CLIENT.format(ssh=self._ssh, folder=self.folder, port=port or self.port)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        return int(free.getsockname()[1])


class Cutter:
    """Stands between a client and a server; counts bytes, and cuts the connections when it is told.

    Args:
        port: the port of the server on this machine.

    Attributes:
        port: where it listens.
        passed_bytes: the bytes that clients sent.
        cuts: how often it cut.
    """

    def __init__(self, port: int) -> None:
        self._server, self.passed_bytes, self.cuts = port, 0, 0
        self._left: int | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((ADDRESS, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int) -> None:
        """Cut every connection once clients have sent `count` bytes more."""
        with self._lock:
            self._left = count

    @property
    def waits(self) -> bool:
        """Whether a cut that was asked for has not come yet."""
        return self._left is not None

    def close(self) -> None:
        """End."""
        self._listener.close()
        self._cut()

    def _accept(self) -> None:
        for client in self._clients():
            with contextlib.suppress(OSError):
                server = socket.create_connection((ADDRESS, self._server))
                pair = (client, server)
                self._pairs.add(pair)
                for one, other, counts in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._copy, args=(one, other, pair, counts), daemon=True).start()

    def _clients(self) -> Iterator[socket.socket]:
        while True:
            try:
                yield self._listener.accept()[0]
            except OSError:
                return

    def _copy(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket], counts: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if counts and not self._counts(data):
                    self._cut()
                    return
                sink.sendall(data)
        self._end(pair)

    def _counts(self, data: bytes) -> bool:
        """Whether these bytes are passed on; where the cut comes inside of them, none of them is."""
        with self._lock:
            if self._left is not None and self._left < len(data):
                self._left = None
                self.cuts += 1
                return False
            if self._left is not None:
                self._left -= len(data)
            self.passed_bytes += len(data)
            return True

    def _cut(self) -> None:
        for pair in list(self._pairs):
            self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
