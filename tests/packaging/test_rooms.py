"""The storeys of the code: few rooms, few arrows between them, none that goes up, and no circles of files."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (
    ("contract",),
    ("capture", "judge"),
    ("artifact",),
    ("calibration",),
    ("places", "plugin"),
    ("pipeline",),
    ("cli", "testing"),
)
"""From the ground; the two of a floor that know each other are named here, and nowhere else."""
NEIGHBOURS = {("plugin", "places"), ("places", "plugin")}
MOST_ARROWS, LARGEST_CIRCLE = 60, 2


def modules() -> dict[str, Path]:
    """Dotted name of every module of the core and of the calibration."""
    found = {}
    for folder in (ROOT / "deploykit", ROOT / "calibration" / "deploykit_calibration"):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path], *, inside_functions: bool) -> Iterator[str]:
    """The modules that a file imports; those under TYPE_CHECKING too, those inside of functions where asked for."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in inner if name in known] or [node.module]
        if inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)


def room(module: str) -> str:
    """The room that a module lies in; the packages' own top level is above all."""
    parts = module.split(".")
    if parts[0] == "deploykit_calibration":
        return "calibration"
    return parts[1] if len(parts) > 1 and (ROOT / "deploykit" / parts[1]).is_dir() else ""


def test_arrows_go_down_and_are_few() -> None:
    known, floor = modules(), {name: number for number, floor in enumerate(FLOORS) for name in floor}
    arrows = defaultdict(set)
    for name, path in known.items():
        for other in imports(path, known, inside_functions=True):
            if room(name) and room(other) and room(name) != room(other):
                arrows[room(name), room(other)].add(name)
    assert {room(name) for name in known} - {""} == set(floor), "a room without a floor"
    assert len(FLOORS) <= 7 and len(arrows) <= MOST_ARROWS
    up = {pair: names for pair, names in arrows.items() if floor[pair[0]] <= floor[pair[1]] and pair not in NEIGHBOURS}
    assert not up


def test_no_circle_of_files_is_larger_than_two() -> None:
    known = modules()
    edges = {name: set(imports(path, known, inside_functions=False)) - {name} for name, path in known.items()}
    reach = {name: reached(name, edges) for name in edges}
    circles = {frozenset(o for o in reach[name] if name in reach[o]) | {name} for name in edges}
    assert not [sorted(circle) for circle in circles if len(circle) > LARGEST_CIRCLE]


def reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    """Everything that a module imports, directly or not."""
    pending, found = list(edges[start]), set[str]()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += edges.get(name, ())
    return found
