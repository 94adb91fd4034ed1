"""What a whole Arm program executes, and for how many cycles: its trace under QEMU, played in LLVM's model of the core.

An estimate, and an optimistic one: data are taken to be in the first-level cache, and branches to be foreseen. Unlike
the hot loops alone it has all that surrounds them: borders, rescaling, other operators.

A trace tells the blocks that ran, one after another. Of each function two stretches of some thousand instructions are
played; their mean cycles an instruction, times the instructions that it executed, are its cycles.
"""

from __future__ import annotations

import re
import subprocess
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PAGE = 4096  # bytes; QEMU ends a block there
_MOST = 512  # instructions of a block of QEMU
_STRETCH = 4000  # instructions
_TRACED = re.compile(rb"^Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]+)/")
_SYMBOL = re.compile(r"^([0-9a-f]+) <([^>]+)>:$")
_CODE = re.compile(r"^ *([0-9a-f]+):\t[0-9a-f]{8} +\t(.*?)(?:\s*//.*)?$")  # SVE has `p0/m`
_BRANCH = re.compile(r"^(b|br|bl|blr|ret|b\.\w+|cbn?z|tbn?z|svc)\b")
_TARGET = re.compile(r"\b([0-9a-f]+) <[^>]*>")


@dataclass
class Function:
    """What one function executed.

    Attributes:
        blocks: where its blocks began, in order.
        instructions: how many instructions it executed.
    """

    name: str
    blocks: array[int] = field(default_factory=lambda: array("Q"))
    instructions: int = 0


class Disassembly:
    """The instructions of a static program by address."""

    def __init__(self, program: Path, objdump: str) -> None:
        said = subprocess.run([objdump, "-d", str(program)], capture_output=True, text=True, check=True).stdout
        self._text: dict[int, str] = {}
        self._starts: list[int] = []
        self._names: list[str] = []
        self._blocks: dict[int, tuple[str, ...]] = {}
        for line in said.splitlines():
            if symbol := _SYMBOL.match(line):
                self._starts.append(int(symbol.group(1), 16))
                self._names.append(symbol.group(2))
            elif code := _CODE.match(line):
                self._text[int(code.group(1), 16)] = code.group(2).strip()

    def function_at(self, address: int) -> str:
        """The name of the function there."""
        index = bisect_right(self._starts, address) - 1
        return self._names[index] if index >= 0 else ""

    def block(self, address: int) -> tuple[str, ...]:
        """The instructions from there to a branch or the end of a page, for `llvm-mca`."""
        if address not in self._blocks:
            self._blocks[address] = tuple(self._walk(address))
        return self._blocks[address]

    def executed(self, address: int, following: int) -> tuple[str, ...]:
        """The instructions of the block that begins there, and after which another began.

        QEMU ends a block early where its translation is long. The next one then begins within what would be the block,
        where no branch of it leads.
        """
        block, count = self.block(address), (following - address) // 4
        if not 0 < count < len(block):
            return block
        target = _TARGET.search(self._text[address + 4 * (len(block) - 1)])
        return block if target and int(target.group(1), 16) == following else block[:count]

    def _walk(self, address: int) -> Iterator[str]:
        page = address // _PAGE
        for at in range(address, address + 4 * _MOST, 4):
            if at // _PAGE != page or at not in self._text:
                return
            yield "\t" + _TARGET.sub(".Lsomewhere", self._text[at])
            if _BRANCH.match(self._text[at]):
                return


def trace(emulator: Sequence[str], program: Path, arguments: Sequence[str], code: Disassembly) -> dict[str, Function]:
    """Run a program to its end; what each of its functions executed."""
    command = [*emulator, "-d", "exec,nochain", str(program), *arguments]
    found: dict[str, Function] = {}
    named: dict[int, Function] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            match = _TRACED.match(line)
            if match is None:
                continue
            at = int(match.group(1), 16)
            function = named.get(at)
            if function is None:
                name = code.function_at(at)
                function = named[at] = found.setdefault(name, Function(name))
            function.blocks.append(at)
    assert process.returncode == 0, f"{program} ended with {process.returncode}"
    for function in found.values():
        function.instructions = sum(len(block) for block in _executed(function, code, 0))
    return found


def _executed(function: Function, code: Disassembly, first: int) -> Iterator[tuple[str, ...]]:
    """The blocks of a function from one on."""
    blocks = function.blocks
    for index in range(first, len(blocks)):
        yield code.executed(blocks[index], blocks[index + 1] if index + 1 < len(blocks) else 0)


def cycles_of(function: Function, code: Disassembly, play: Callable[[Sequence[str]], float]) -> float:
    """Cycles of all that a function executed.

    Args:
        play: instructions -> cycles of one turn.
    """
    count, spent, played = len(function.blocks), 0.0, 0
    for first in sorted({0, count // 3, 2 * count // 3} if count < 64 else {count // 3, 2 * count // 3}):
        lines: list[str] = []
        for block in _executed(function, code, first):
            lines += block
            if len(lines) >= _STRETCH:
                break
        if lines:
            spent, played = spent + play(lines), played + len(lines)
    return function.instructions * spent / played if played else 0.0
