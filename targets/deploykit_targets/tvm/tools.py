"""Programs that this toolchain starts and that pip does not install."""

from __future__ import annotations

import platform

from deploykit.contract.optional import SystemTool

_NATIVE = SystemTool("gcc", "gcc", "compile the executor of TVM artifacts for this machine")
_CROSS = {
    "aarch64": SystemTool(
        "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", "compile the executor of TVM artifacts for Arm boards"
    ),
    "x86_64": SystemTool(
        "x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu", "compile the executor of TVM artifacts for x86-64"
    ),
}


def compiler_for(arch: str) -> SystemTool:
    """The C compiler that makes code for an architecture (`x86_64`, `aarch64`) on this machine."""
    return _NATIVE if platform.machine() == arch else _CROSS[arch]


def system_tools() -> tuple[SystemTool, ...]:
    """All of them, for `Capabilities.system_tools`."""
    from deploykit.places.qemu import EMULATOR
    from deploykit.places.ssh import SSH

    return tuple(dict.fromkeys((_NATIVE, compiler_for("aarch64"), EMULATOR, SSH)))
