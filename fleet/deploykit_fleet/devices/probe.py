"""What a board says of itself when it is added: its machine, its system, what runs artifacts there, what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploykit.contract.errors import DeviceError, UsageError
from deploykit.contract.host import ARCHITECTURES
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.line import LostError
from deploykit.plugin.registry import resolve
from deploykit_fleet.devices.registry import Found
from deploykit_fleet.devices.sensors import CLOCK, TEMPERATURE, THROTTLING, Sources, conditions, looking

if TYPE_CHECKING:
    from deploykit.places.board import Board

ONBOARD = "deploykit_fleet.devices.onboard"
_KINDS = (TEMPERATURE, CLOCK, THROTTLING)

# Each line is a name, a blank and what the board says; what it does not say is an empty line of that name.
_ASK = """
echo "kernel $(uname -r 2>/dev/null)"
echo "system $(. /etc/os-release 2>/dev/null && echo "$PRETTY_NAME" || getprop ro.build.fingerprint 2>/dev/null)"
echo "model $(tr -d '\\000' < /proc/device-tree/model 2>/dev/null || cat /sys/class/dmi/id/product_name 2>/dev/null \\
  || getprop ro.product.model 2>/dev/null)"
echo "memory_kb $(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo 2>/dev/null)"
"""


def probe(board: Board, sources: Sources | None = None) -> tuple[Found, str]:
    """Ask a board.

    Args:
        board: whose system, Python and deploykit are asked.
        sources: see `sensors.py`.
    Returns:
        What it says; and why no artifact can be opened by a deploykit there, with what installs it; "" where one can.
    Raises:
        DeviceError: it cannot be reached.
    """
    host = board.host()
    said = _said(board.line.run(_ASK).stdout.decode(errors="replace"))
    told = conditions(board.line.run(f"{looking(sources or Sources())}look").stdout.decode(errors="replace"))
    there, why = _deploykit(board)
    runtimes = there.get("runtimes")
    found = Found(
        arch=host.arch,
        os=host.os,
        cores=host.cores,
        isa=host.isa,
        system=said.get("system", ""),
        kernel=said.get("kernel", ""),
        model=said.get("model", ""),
        memory_bytes=int(said.get("memory_kb") or 0) * 1024,
        python=str(there.get("python", "")),
        deploykit=str(there.get("deploykit", "")),
        runtimes={str(name): str(own) for name, own in runtimes.items()} if isinstance(runtimes, dict) else {},
        sensors=tuple(kind for kind in _KINDS if kind not in told.absent),
        absent=told.absent,
    )
    return found, why


def check_target(target: str, found: Found, name: str) -> None:
    """Refuse a target that the board cannot be.

    Raises:
        UnknownTargetError: there is no such target.
        UsageError: it has another processor.
    """
    device = resolve(target).device
    family = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "arm64"}.get(found.arch.lower(), found.arch)
    if device.arch in ARCHITECTURES and family != device.arch:
        message = f"{name} is {found.arch}, and {target} has a processor of {device.arch}"
        raise UsageError(message, hint="deploykit targets lists the devices")


def _deploykit(board: Board) -> tuple[Mapping[str, object], str]:
    try:
        peer = board.server(ONBOARD)
    except LostError:
        raise
    except DeviceError as error:
        return {}, f"{error.message}; {error.hint}" if error.hint else error.message
    try:
        return peer.ask(Frame(frames.CALL, {"do": "describe"})).facts, ""
    finally:
        peer.close()


def _said(text: str) -> dict[str, str]:
    parted = (line.partition(" ") for line in text.splitlines())
    return {name: "".join(c for c in value.strip() if c.isprintable())[:200] for name, _, value in parted}
