"""Where buffers lie in the arena: those that are needed at the same time never overlap.

Large ones are placed first, each at the lowest place that is free while it lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deploykit_targets.tvm.program import ALIGNMENT
from deploykit_targets.tvm.values import Buffer

Touched = tuple[Sequence[Buffer], Sequence[Buffer]]


@dataclass
class ConstantBlock:
    """The block of constants that all programs of a library read: equal bytes are there once."""

    size: int = 0
    _parts: dict[bytes, int] = field(default_factory=dict)

    def place(self, buffer: Buffer) -> int:
        """Offset of a constant."""
        assert buffer.data is not None
        data = buffer.data.tobytes().ljust(buffer.size_bytes, b"\0")
        if data not in self._parts:
            self._parts[data] = self.size
            self.size += _rounded(buffer)
        return self._parts[data]

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(part + b"\0" * (-len(part) % ALIGNMENT) for part in self._parts)


def place(
    steps: Sequence[Touched], inputs: Sequence[Buffer], outputs: Sequence[Buffer]
) -> tuple[dict[Buffer, int], int]:
    """Plan the arena.

    Args:
        steps: what each reads and writes; constants are left out.
        inputs: written before the first step.
        outputs: read after the last one.
    Returns:
        Offset of each buffer in bytes, and the arena's size.
    """
    lives = lifetimes(steps, inputs, outputs)
    placed: dict[Buffer, int] = {}
    for buffer in sorted(lives, key=lambda b: -b.size_bytes):
        placed[buffer] = _lowest(buffer, lives, placed)
    return placed, max((offset + _rounded(buffer) for buffer, offset in placed.items()), default=0)


def lifetimes(
    steps: Sequence[Touched], inputs: Sequence[Buffer], outputs: Sequence[Buffer]
) -> dict[Buffer, tuple[int, int]]:
    """First and last step that touch each buffer; -1 is before the first step."""
    lives: dict[Buffer, tuple[int, int]] = dict.fromkeys(inputs, (-1, -1))
    for number, (reads, writes) in enumerate(steps):
        for buffer in (*reads, *writes):
            if buffer.data is None:
                lives[buffer] = (lives.get(buffer, (number, 0))[0], number)
    for buffer in outputs:
        lives[buffer] = (lives.get(buffer, (-1, 0))[0], len(steps))
    return lives


def _lowest(buffer: Buffer, lives: Mapping[Buffer, tuple[int, int]], placed: Mapping[Buffer, int]) -> int:
    first, last = lives[buffer]
    taken = sorted(
        (offset, offset + _rounded(other))
        for other, offset in placed.items()
        if lives[other][0] <= last and first <= lives[other][1]
    )
    start = 0
    for low, high in taken:
        if start + _rounded(buffer) <= low:
            break
        start = max(start, high)
    return start


def _rounded(buffer: Buffer) -> int:
    return -(-buffer.size_bytes // ALIGNMENT) * ALIGNMENT
