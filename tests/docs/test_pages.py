"""Every code block of every page is executed, or says why not; Python that is not run compiles at least."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.docs.blocks import SHELL, blocks_of, program  # noqa: E402 - the folder is no installed package

ABSENT = 77  # as `prelude.py` exits where a block needs what is not here

Runner = Callable[[Path, str], tuple[int, str]]
ROOMS = ("calibration", "deploykit", "fleet", "serving", "targets", "training", "trust", "tuning")
PAGES = sorted(
    {
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs" / "pages").rglob("*.md"),
        *(page for room in ROOMS for page in (ROOT / room).rglob("*.md")),
        *(ROOT / "examples").rglob("*.md"),
    }
)
WITH_BLOCKS = [page for page in PAGES if any(True for _ in blocks_of(page))]
RUN = [
    page
    for page in WITH_BLOCKS
    if any(block.is_run and block.language in (*SHELL, "python") for block in blocks_of(page))
]


def is_ours(page: Path) -> bool:
    """Whether it is a page of the documentation; those of rooms run nightly, what they say is tested in their rooms."""
    return page == ROOT / "README.md" or page.is_relative_to(ROOT / "docs")


def is_slow(page: Path) -> bool:
    return any("nightly" in block.marks for block in blocks_of(page))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_blocks_say_what_they_are(page: Path) -> None:
    known = {"file", "setup", "needs", "nightly", "fails", "output", "installs", "not-run"}
    for block in blocks_of(page):
        assert block.marks.keys() <= known, f"{name_of(page)}:{block.line}"
        assert "not-run" not in block.marks or len(block.marks["not-run"]) > 10, "a reason is words"
        if block.language == "python":
            compile(block.code, f"{name_of(page)}:{block.line}", "exec")
        elif block.language in SHELL and block.is_run:
            assert block.commands, f"{name_of(page)}:{block.line} runs nothing: mark it output, installs or not-run"


@pytest.mark.parametrize("page", [page for page in WITH_BLOCKS if is_ours(page)], ids=name_of)
def test_what_a_page_does_not_define_is_the_readers_own(page: Path) -> None:
    """A block that is pasted needs its imports; docs/pages/index.md says what the names of the reader are."""
    plain = [block.code for block in blocks_of(page) if block.language == "python" and "file" not in block.marks]
    nodes = [node for code in plain for node in ast.walk(ast.parse(code))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {name.id for name in names if not isinstance(name.ctx, ast.Load)}
    bound |= {
        alias.asname or alias.name.partition(".")[0]
        for n in nodes
        for alias in getattr(n, "names", ())
        if isinstance(alias, ast.alias)
    }
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and n.name}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    missing = {name.id for name in names} - bound - vars(builtins).keys()
    assert missing <= {"model", "x", "loader", "accuracy", "images", "labels", "artifact", "array"}


@pytest.mark.parametrize("page", [page for page in WITH_BLOCKS if "third_party" not in str(page)], ids=name_of)
def test_extras_that_are_installed_exist(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(
        r'pip install[^\n`"]*"(?:\.|deploykit|\S+\.whl)\[([\w,-]+)\]', page.read_text(encoding="utf-8")
    ):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()


@pytest.fixture(scope="module")
def runner() -> Iterator[Callable[[Path, str], tuple[int, str]]]:
    """Runs a program in a folder, in a fork of a process that has PyTorch."""
    pytest.importorskip("torch", reason="pages export models, which needs PyTorch")
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "tests.docs.runner"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin and server.stdout

        def run(folder: Path, code: str) -> tuple[int, str]:
            assert server.stdin and server.stdout
            server.stdin.write(json.dumps({"folder": str(folder), "program": code}) + "\n")
            server.stdin.flush()
            found = json.loads(server.stdout.readline())
            return found["code"], found["printed"]

        yield run
        server.stdin.close()


@pytest.mark.parametrize("page", [page for page in RUN if is_ours(page)], ids=name_of)
def test_every_block_runs(page: Path, tmp_path: Path, runner: Runner) -> None:
    ended(page, *runner(tmp_path, program(page)))


@pytest.mark.nightly
@pytest.mark.parametrize("page", [page for page in RUN if not is_ours(page) or is_slow(page)], ids=name_of)
def test_every_slow_block_and_those_of_rooms_run(page: Path, tmp_path: Path, runner: Runner) -> None:
    ended(page, *runner(tmp_path, program(page, slow=True)))


def ended(page: Path, code: int, printed: str) -> None:
    if code == ABSENT:
        pytest.skip(printed.strip().splitlines()[-1])
    assert code == 0, f"{name_of(page)}\n{printed[-4000:]}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


@pytest.mark.nightly
def test_the_readmes_code_has_types(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed here")
    python = [block for block in blocks_of(readme) if block.language == "python"]
    files = [tmp_path / block.marks.get("file", f"block_{at}.py") for at, block in enumerate(python)]
    for file, block in zip(files, python, strict=True):
        file.write_text(block.code, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path), str(ROOT)])
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *map(str, files)],
        cwd=tmp_path,
        env={
            **os.environ,
            "MYPYPATH": os.pathsep.join([str(ROOT), str(tmp_path), *(str(ROOT / room) for room in ROOMS)]),
            "PYTHONPATH": paths,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in checked.stdout.splitlines() if line.startswith(tuple(file.name for file in files))]
    assert files and not ours, checked.stdout + checked.stderr


def test_messages_of_the_troubleshooting_page_are_raised_by_the_product() -> None:
    page = ROOT / "docs" / "pages" / "guides" / "troubleshooting.md"
    rows = [line.split("|")[1] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    said = "\n".join(all_strings())
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row):
            parts = re.split(r"'[^']*'|\b(?:[A-Z]|MODEL)\b|\.\.\.|\bint8\b:?", message)
            for part in filter(None, (part.strip(" ;,") for part in parts)):
                assert part in said, f"no message has {part!r}"


def all_strings() -> Iterator[str]:
    """The strings of the product, those with something filled in without it, and neighbours joined."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
