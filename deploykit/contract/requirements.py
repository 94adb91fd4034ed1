"""`Requirements`: what an artifact's payload needs of the machine that runs it, and whether a machine has it.

Written into the manifest at export, checked by `Target.preflight` before a runtime sees the payload. What is missing is
refused with the next step; what the payload is only best with is done without, and said. Nothing is guessed: what
cannot be found out about a machine is left to its runtime.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from deploykit.contract.host import Host

VNNI = "vnni"
_SPECIFIER = re.compile(r"(?P<relation>>=|==)(?P<version>[0-9.]+?)(?P<any>\.\*)?")


@dataclass(frozen=True)
class BestWith:
    """An instruction set that the payload is made for, and what is done on a machine without it.

    Attributes:
        isa: its name; `vnni` is any of its forms.
        without: what is done then.
        same_arithmetic: whether that gives what the device gives; else its evidence is not that of the device.
        instead: the target that is made for such machines; "" where there is none.
        arch: the architecture of the processors that this is about; others have no such instruction set, and nothing is
            done.
    """

    isa: str
    without: str
    same_arithmetic: bool
    instead: str = ""
    arch: str = "x86-64"


@dataclass(frozen=True)
class Requirements:
    """What a payload needs. An empty field asks for nothing.

    Attributes:
        arch: processor architectures that it runs on, as in device tables (`x86-64`, `arm64`).
        os: operating systems, with the oldest version where there is one (`Linux`, `iOS 17`, `macOS 14`).
        isa: instruction sets that it executes, all of them.
        gpu: architecture of the GPU (`sm_87`, `gfx942`).
        packages: distribution -> version, as `>=1.20` or `==2.13.*`, of what opens it.
        opset: operator set -> version that the runtime must read (`ai.onnx`, `openvino`, `coreml`).
        memory_bytes: the least memory that it takes, which is what its files hold.
        best_with: what it is made for and can do without.
        instead: the target to export for where an instruction set is missing.
    """

    arch: tuple[str, ...] = ()
    os: tuple[str, ...] = ()
    isa: tuple[str, ...] = ()
    gpu: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    opset: dict[str, int] = field(default_factory=dict)
    memory_bytes: int = 0
    best_with: tuple[BestWith, ...] = ()
    instead: str = ""

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and text of every field that asks for something, for people."""
        yield from (
            (name, text)
            for name, text in (
                ("architecture", " or ".join(self.arch)),
                ("system", " or ".join(self.os)),
                ("instruction sets", " ".join(self.isa)),
                ("GPU", self.gpu),
                ("packages", ", ".join(f"{name}{version}" for name, version in sorted(self.packages.items()))),
                ("operator set", ", ".join(f"{name} {version}" for name, version in sorted(self.opset.items()))),
                ("best with", ", ".join(f"{one.isa} (without: {one.without})" for one in self.best_with)),
            )
            if text
        )


@dataclass(frozen=True)
class Missing:
    """Something that an artifact needs and a machine lacks.

    Attributes:
        what: as the end of a sentence: "it needs ..., and ...".
        next: what to do.
        package: the distribution that is too old; "" where it is no package.
    """

    what: str
    next: str
    package: str = ""


@dataclass(frozen=True)
class Preflight:
    """Whether a machine can run an artifact, and how.

    Attributes:
        host: the machine.
        missing: what it lacks; the artifact is not opened.
        adapted: what is done without, and how; the artifact is opened.
        notes: what else there is to know, such as what runs the payload instead of its device.
        native: whether what runs here computes as the device does.
    """

    host: Host
    missing: tuple[Missing, ...] = ()
    adapted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    native: bool = True

    @property
    def ok(self) -> bool:
        """Whether the artifact can be opened."""
        return not self.missing

    @property
    def verdict(self) -> str:
        """One line for people."""
        if self.missing:
            return "no: " + "; ".join(f"{one.what} ({one.next})" for one in self.missing)
        return "yes" + "".join(f"; {text}" for text in (*self.adapted, *self.notes))


def check(needs: Requirements, host: Host, *, memory_bytes: int | None = None) -> Preflight:
    """Compare what is needed with a machine that runs the payload itself, and with the packages installed here.

    Args:
        needs: the needs of an artifact.
        host: the machine.
        memory_bytes: its memory; None for this machine's.
    """
    missing = (
        *_missing_machine(needs, host),
        *_missing_packages(needs.packages),
        *_missing_memory(needs.memory_bytes, _memory() if memory_bytes is None else memory_bytes),
    )
    without = [one for one in needs.best_with if one.arch == host.family and not host.has(one.isa)]
    notes = () if host.knows_isa or not (needs.isa or needs.best_with) else (_unknown(host),)
    return Preflight(
        host=host,
        missing=missing,
        adapted=tuple(_adapted(one, host) for one in without),
        notes=notes,
        native=all(one.same_arithmetic for one in without),
    )


def lacking(features: tuple[str, ...], host: Host) -> tuple[str, ...]:
    """Those of a device's features that are instruction sets and that `host` lacks; none where nothing is known."""
    return tuple(name for name in features if host.knows_isa and host.can_tell(name) and not host.has(name))


def _missing_machine(needs: Requirements, host: Host) -> Iterator[Missing]:
    if needs.arch and host.family not in needs.arch:
        named = " or ".join(needs.arch)
        next_step = f"run it on {named}, or export for a target of {host.family}"
        yield Missing(f"it is code for {named}, and this machine is {host.family}", next_step)
        return
    systems = {system.split()[0] for system in needs.os}
    if systems and host.os not in systems:
        yield Missing(f"it needs {' or '.join(needs.os)}, and this is {host.os}", "run it there, or export it here")
    absent = lacking(needs.isa, host)
    if absent:
        instead = f'export for target="{needs.instead}"' if needs.instead else "export it on this machine"
        yield Missing(f"it needs {' '.join(absent)}, which this CPU lacks ({host})", instead)


def _missing_packages(packages: Mapping[str, str]) -> Iterator[Missing]:
    """Those whose version is known and does not fit; what is not installed at all is asked for elsewhere."""
    for name, specifier in packages.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not fits(found, specifier):
            yield Missing(
                f"it needs {name}{specifier}, and {found} is installed", f'pip install "{name}{specifier}"', name
            )


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _missing_memory(needed: int, there: int) -> Iterator[Missing]:
    if needed > there:
        text = f"its files hold {needed / 2**30:.1f} GiB, and this machine has {there / 2**30:.1f} GiB of memory"
        yield Missing(text, "run it on a machine with more memory, or export in a smaller precision")


def _adapted(one: BestWith, host: Host) -> str:
    """What is done without an instruction set, with the reason and the next step."""
    known = f"this CPU has no {one.isa}" if host.knows_isa else f"nobody can tell whether this CPU has {one.isa}"
    return f"{known}: {one.without}" + (f' (made for such CPUs: target="{one.instead}")' if one.instead else "")


def _unknown(host: Host) -> str:
    return f"the instruction sets of this {host.arch} CPU could not be read: what needs one was not checked"


def fits(version: str, specifier: str) -> bool:
    """Whether a version is one that `>=1.20`, `==2.13.*` or "" allows; only its leading numbers are compared.

    Raises:
        ValueError: another form of specifier.
    """
    if not specifier:
        return True
    match = _SPECIFIER.fullmatch(specifier)
    if match is None:
        raise ValueError(f"{specifier!r} is no version that can be checked")
    wanted = _numbers(match["version"])
    found = _numbers(version)
    found += (0,) * (len(wanted) - len(found))
    if match["relation"] == ">=":
        return found >= wanted
    return found[: len(wanted)] == wanted if match["any"] else found == wanted


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()
