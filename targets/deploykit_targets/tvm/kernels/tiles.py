"""The register tile of a matrix-multiply kernel: how many rows and columns it accumulates at once.

A model of the inner loop, not a search: what is measured belongs in `benchmarks/tvm_kernels.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit_targets.tvm.kernels.dot import Dot

TILE_ROWS = 16
"""Rows of a tile register (AMX), of 64 bytes each."""
STEP = 0.5
"""What a step of a tile takes beside its products, in the time of one of them."""
_TILE_OVERHEAD = 4  # cycles of a step of tiles that neither loads nor products hide
_JOINED = 256  # pixels of joined lines at most, so that threads find enough of them
_ONE_LINE = 64  # pixels of an image that may all be one line: others are shared by two threads
_STREAMS = 4  # columns of cache lines that one row reads beside each other: the CPU fetches no more of them ahead
_POINTERS = 10  # rows whose addresses stay in registers, where they are not one distance apart


def choose_tile(rows: int, vectors: int, dot: Dot, *, by: int = 1, step: float = STEP) -> tuple[int, int]:
    """The tile that covers a (rows, vectors) result in the fewest estimated cycles.

    One step of a tile of r rows and v column vectors loads r activations and v weight vectors for r * v
    multiply-accumulates; loads and multiply-accumulates run beside each other at the same rate.

    Args:
        rows: output pixels that lie in one line.
        vectors: column vectors.
        dot: the instruction whose registers hold accumulators, weights, and one activation, or one per row where it
            reads lanes.
        by: vectors that lie beside each other in packed weights; divides `vectors`, and the tile's.
        step: what a step takes beside its products, in the time of one of them.
    Returns:
        Rows (at most `rows`, a multiple of the step's) and vectors of the tile.
    """
    counts = range(dot.sums.rows, rows + 1, dot.sums.rows)
    vectors = min(vectors, _STREAMS * by) if rows == 1 and dot.fills_lines else vectors
    tiles = [(r, v) for v in range(by, vectors + 1, by) for r in counts if _fits(r, v, dot)]

    def cost(tile: tuple[int, int]) -> tuple[float, float]:
        return _cycles(rows, vectors, dot, *tile, step=step), tile[0] / dot.registers.wide + tile[1]

    return min(tiles, key=cost)


def _fits(r: int, v: int, dot: Dot) -> bool:
    if dot.multiplies_matrices:
        return _matrices_held(r, v) <= dot.registers.matrices
    return _held(r, v, dot) <= dot.registers.vectors


def _held(r: int, v: int, dot: Dot) -> int:
    """Vector registers of a tile."""
    if dot.sums.rows > 1:  # activations fill a register per two rows, and weights, taken one vector after another, two
        return r * v + r // 2 + 2
    if dot.sums.parts > 1:  # sums and weights fill two registers per column of a step, and products wait in some
        return (r + 1) * v * dot.sums.parts * dot.lanes // 4 + 6
    if dot.registers.parted:  # both parts of the weights, both parts of the activations, and the mask
        return r * v + 2 * v + 3
    return r * v + v + (r if dot.registers.wide > 1 else 1)


def _matrices_held(r: int, v: int) -> int:
    """Tile registers of a tile: accumulators, activations, weights."""
    high = -(-r // TILE_ROWS)
    return high * v + high + v


def _cycles(rows: int, vectors: int, dot: Dot, r: int, v: int, *, step: float) -> float:
    steps = -(-rows // r) * -(-vectors // v)
    if dot.multiplies_matrices:
        return tile_cycles(rows, vectors, r, v)
    if dot.sums.parts > 1:  # two products and a sum of them for each register of accumulators
        return steps * (2 * r * v * dot.sums.parts * dot.lanes / 4 + step)
    if dot.sums.rows > 1:  # two rows are put together where others multiply; three loads beside four products
        return steps * (max(r * v + r / 2, 1.5 * (r + 2 * v), dot.registers.pipeline) + step)
    return steps * (max(r * v, r + v, dot.registers.pipeline) + step)


def tile_cycles(rows: int, vectors: int, r: int, v: int, *, near: bool = True) -> float:
    """Cycles of a step of tiles of matrices over a (rows, vectors) result.

    A product takes one cycle per row of its activations; a first-level cache gives two rows of 64 bytes per cycle, and
    the second-level cache one row of weights in two cycles (measured: a 3x3 convolution of 14x14x256).

    Args:
        r, v: rows and vectors of a tile.
        near: whether the weights are read from the first-level cache.
    """
    weights = v * TILE_ROWS * (0.5 if near else 2)
    return -(-rows // r) * -(-vectors // v) * (max(r * v, r / 2 + weights) + _TILE_OVERHEAD)


def join_lines(
    size: tuple[int, int], vectors: int, dot: Dot, *, by: int = 1, within: int = 0, step: float = STEP
) -> tuple[int, int, int, int]:
    """The tile of a convolution's lines, and how many of these are one line, so that no tile covers pixels twice.

    Lines that do not divide into tiles waste a part of the last one: one of six pixels covers 14 as 18, and 28 as 30.

    Args:
        size: lines, of all images, and pixels of each.
        within: lines of an image, which stay together.
    Returns:
        Rows and vectors of the tile; lines and pixels of each.
    """
    lines, pixels = size
    most = min(_JOINED, max(_ONE_LINE, within * pixels // 2))
    counts = [n for n in range(1, within + 1) if within % n == 0 and n * pixels <= most] or [1]
    tiles = {n: choose_tile(n * pixels, vectors, dot, by=by, step=step) for n in counts}

    def cost(count: int) -> float:
        extra = 1.0 if count == 1 else 1.02 if tiles[count][0] <= _POINTERS else 1.1
        return extra * _cycles(count * pixels, vectors, dot, *tiles[count], step=step) / count

    count = min(counts, key=cost)
    return (*tiles[count], lines // count, count * pixels)


def fold_rows(count: int, vectors: int, dot: Dot, *, by: int = 1, step: float = STEP) -> tuple[int, int]:
    """`count` independent pixels as lines that threads can share: (lines, pixels per line).

    Lines have 32 to 256 pixels where `count` allows it, of the length whose tiles waste least; else there is one line.
    """
    lengths = [length for length in range(32, min(count, 256) + 1) if count % length == 0]

    def cost(length: int) -> float:
        return _cycles(length, vectors, dot, *choose_tile(length, vectors, dot, by=by, step=step), step=step) / length

    if dot.saturate is not None:  # a line begins with loading what its short ends need: of equals take the longest
        lengths.reverse()
    length = min(lengths, key=cost, default=count)
    return count // length, length
