"""Code blocks of the project's pages: found, and turned into one program a page that runs them in their order.

A comment before a block says what is not plain about it, and a reader of the page does not see it:

    <!-- block: file=my_model.py -->      written to that file, which later blocks import or name
    <!-- block: needs=coremltools -->     runs where that module (or, with needs=!qemu-x86_64-static, program) is
    <!-- block: nightly -->               slow: runs with `-m nightly`
    <!-- block: fails=6 -->               a command that ends with that exit code
    <!-- block: output -->                what something prints, or a drawing; nothing to run
    <!-- block: installs -->              commands that install: their extras are checked, tox runs their like
    <!-- block: setup=out/net -->         an artifact of `model` is there before
    <!-- block: not-run: a reason -->     a fragment, or what needs a board or a GPU; compiled where Python

Blocks of a page share one process and one folder. Before the first one `prelude.py` has made `model`, `x`, `loader`,
`accuracy` and their like, as a reader's own program has.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- block: (?P<mark>[^\n]*?) -->\n(?: *\n)?(?P=indent))?"
    r"```(?P<language>[\w+-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_PROGRAMS = ("deploykit", "python", "openssl")
SHELL = ("", "bash", "sh", "console")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: of its first line of code, from 1.
        language: as it is fenced; "" for none.
        code: without the indentation of the fence.
        marks: words of the comment before it, `name=value` as pairs.
    """

    line: int
    language: str
    code: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether it is executed somewhere."""
        return not {"not-run", "output", "installs", "file"} & self.marks.keys()

    @property
    def commands(self) -> list[list[str]]:
        """Of a shell block: the commands that deploykit or Python runs; comments behind them are left out."""
        joined = self.code.replace("\\\n", " ")
        words = [shlex.split(line, comments=True) for line in joined.splitlines()]
        return [line for line in words if line and line[0] in _PROGRAMS]


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("body")) + 1
        yield Block(line, found["language"], textwrap.dedent(found["body"]), dict(_marks(found["mark"] or "")))


def _marks(text: str) -> Iterator[tuple[str, str]]:
    if text.startswith("not-run"):
        yield "not-run", text.partition(":")[2].strip()
        return
    for word in text.split():
        name, _, value = word.partition("=")
        yield name, value


def program(page: Path, *, slow: bool = False) -> str:
    """A Python program that runs a page's blocks; one that needs what is not here says so and stops."""
    parts = ["from tests.docs.prelude import *", "from tests.docs import prelude as _p"]
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        if "file" in block.marks:
            parts.append(f"_p.write({block.marks['file']!r}, {block.code!r})")
        if not block.is_run or ("nightly" in block.marks and not slow):
            continue
        if "setup" in block.marks:
            parts.append(f"_p.artifact({block.marks['setup']!r})")
        if block.marks.get("needs"):
            parts.append(f"_p.needs({block.marks['needs']!r}, {where!r})")
        if block.language == "python":
            parts.append(f"exec(compile({_padded(block)!r}, {str(page)!r}, 'exec'), globals())")
        elif block.language in SHELL:
            wanted = int(block.marks.get("fails", "0"))
            parts += [f"_p.shell({command!r}, {wanted}, {where!r})" for command in block.commands]
    return "\n".join(parts) + "\n"


def _padded(block: Block) -> str:
    """The code at its own line numbers, for tracebacks."""
    return "\n" * (block.line - 1) + block.code
