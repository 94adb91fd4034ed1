"""What the API calls `exclude=` the command line calls `--exclude`; every message of the product is held to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit.cli.words import _FLAGS, _OPTIONS, spoken

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("deploykit", "calibration", "targets", "tuning")
ARGUMENTS = {*_OPTIONS, *(name for name, _ in _FLAGS), "example_inputs"}
NAMED = re.compile(rf"(?<![\w./:`-])({'|'.join(ARGUMENTS)})=")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("keep the worst layers in float (exclude=['conv1', 'layer 2.*'])", "--exclude conv1 --exclude 'layer 2.*'"),
        ('choose precision="int8-dynamic"', "--precision int8-dynamic"),
        ("strict=False returns the candidate", "--no-strict keeps the candidate"),
        ("artifact.achieved.not_as_requested has every layer", "deploykit inspect shows every layer"),
        ("see artifact.parity for the outputs that differ", "deploykit inspect shows the outputs that differ"),
        ("min_placement=0.42 accepts", "--min-placement 0.42 accepts"),
        ('options={"io": "int8"}', "--option io=int8"),
        ("max_drop needs evaluate=, the metric", "--max-drop needs --evaluate, the metric"),
        ("needs dynamic_batch= or dynamic_shapes=", "needs --dynamic-batch or --dynamic-shapes"),
        ("tolerance=deploykit.Tolerance(min_sqnr_db=20.0)", "--min-sqnr-db 20.0"),
        ("min_speedup needs profile=True", "--min-speedup needs a profile"),
        (
            'deploykit.export(precision="auto", evaluate=..., max_drop=...) chooses',
            "deploykit export --precision auto --evaluate --max-drop chooses",
        ),
    ],
)
def test_hints_are_in_the_command_lines_own_words(said, meant):
    assert meant in spoken(said)


@pytest.mark.parametrize(
    "text",
    ["my.module.max_drop=3", "./max_drop/x.npz", "layer1.exclude=2", "numpy.savez(path, x=...)", "pip install a==1"],
)
def test_what_is_no_argument_is_left_alone(text):
    assert spoken(text) == text


def messages() -> Iterator[tuple[str, str]]:
    """Every string of an error's call or of a hint, with `X` for what is filled in."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if "testing" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for part in told_by(node):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", part


def told_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
        yield from filter(None, map(text_of, [*node.args, *(keyword.value for keyword in node.keywords)]))
    elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("hint", "message", "instead"):
        yield from filter(None, [text_of(node.value)])


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return ""


def test_no_message_of_the_product_names_an_argument_of_the_api():
    found = list(messages())
    assert len(found) > 300
    left = [f"{where}: {spoken(text)}" for where, text in found if NAMED.search(spoken(text))]
    assert not left, "\n".join(left)
