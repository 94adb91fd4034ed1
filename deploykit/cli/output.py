"""What a command hands back, and the only place that writes to standard output and standard error.

Standard output carries the result and nothing else: a page for people, or with `--json` exactly one document. While a
command works, whatever libraries print there (C++ runtimes too) goes to standard error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

from deploykit.cli.words import spoken
from deploykit.contract.errors import DeploykitError, GateError
from deploykit.contract.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# A file or a pipe has no width: lines stay whole for grep, unless the user says COLUMNS.
_UNWRAPPED = 1000


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Attributes:
        document: for `--json`; dataclasses, enums and paths are turned into JSON, NaN and infinity into null.
        page: for people; plain strings are printed as they are, without markup.
        exit_code: of the process.
    """

    document: Mapping[str, Any]
    page: Sequence[RenderableType]
    exit_code: int = 0


class Finished(Exception):  # noqa: N818 - no error: ends the parsing of arguments with an answer (`--version`)
    """Carries an answer out of an option's callback."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class Interrupted(DeploykitError):  # noqa: N818 - the user did it, nothing failed
    """Ctrl-C."""

    exit_code = 130


def write_answer(answer: Answer, *, as_json: bool) -> None:
    """Write the page or the document to standard output.

    Raises:
        BrokenPipeError: the reader went away.
        DeploykitError: standard output cannot be written (a full disk).
    """
    try:
        if as_json:
            _write_document(answer.document)
        else:
            _write_page(answer.page)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DeploykitError(f"cannot write to standard output: {error.strerror or error}") from error


def _write_document(document: Mapping[str, Any]) -> None:
    import msgspec

    data = msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2) + b"\n"
    if sys.stdout is None:  # closed by the caller (`>&-`): there is nowhere to write
        return
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(data.decode())
    else:  # UTF-8 whatever the locale says: that is what JSON is
        sys.stdout.flush()
        buffer.write(data)
    sys.stdout.flush()


def _write_page(page: Sequence[RenderableType]) -> None:
    if sys.stdout is None:
        return
    console = make_console(sys.stdout)
    for index, part in enumerate(page):
        text = isinstance(part, str)
        if index and not text:
            console.print()
        console.print(printable(part) if isinstance(part, str) else part, soft_wrap=text)
    sys.stdout.flush()


def make_console(stream: TextIO) -> Console:
    """A rich console that prints strings literally: no markup, emoji or highlighting, colours on a terminal only."""
    from rich.console import Console

    free = not stream.isatty() and not os.environ.get("COLUMNS", "").isdigit()
    return Console(file=stream, width=_UNWRAPPED if free else None, markup=False, emoji=False, highlight=False)


def note(message: str) -> None:
    """One line for people on standard error."""
    if sys.stderr is not None:
        print(printable(f"note: {message}"), file=sys.stderr)


def report_error(error: DeploykitError, *, as_json: bool, debug: bool) -> int:
    """One readable block on standard error and, with `--json`, the document on standard output.

    Returns:
        The exit code of the error's class.
    """
    if debug:
        _print_traceback(error)
    message, hint = spoken(error.message), spoken(error.hint) if error.hint else error.hint
    document: dict[str, Any] = {
        "type": type(error).__name__,
        "message": message,
        "hint": hint,
        "exit_code": error.exit_code,
    }
    lines = [f"error: {message}", *([f"  -> {hint}"] if hint else [])]
    if isinstance(error, GateError) and error.ladder:
        document["ladder"] = list(error.ladder)
    if isinstance(error, GateError) and error.candidate is not None:
        document["candidate"] = str(error.candidate.path)
        lines.append(f"  -> the candidate is kept: deploykit inspect {error.candidate.path}")
    if not as_json:
        _print_ladder(error)
    _print_block(lines)
    if as_json:
        write_answer(Answer({"error": document}, ()), as_json=True)
    return error.exit_code


def _print_ladder(error: DeploykitError) -> None:
    """What a search tried before it missed, above the error."""
    if sys.stderr is not None and isinstance(error, GateError) and error.ladder:
        from deploykit.cli.commands.tune import search_table

        make_console(sys.stderr).print(search_table(error.ladder))


def report_defect(error: Exception, *, as_json: bool) -> int:
    """An exception that nobody meant to raise: the traceback, and a request to report it.

    Returns:
        1.
    """
    _print_traceback(error)
    hint = "this is a defect of deploykit, a plugin or the model's code; please report it with the traceback"
    message = f"unexpected {type(error).__name__}: {error}"
    _print_block([f"error: {message}", f"  -> {hint}"])
    if as_json:
        document = {"type": type(error).__name__, "message": message, "hint": hint, "exit_code": 1}
        write_answer(Answer({"error": document}, ()), as_json=True)
    return 1


def _print_traceback(error: BaseException) -> None:
    if sys.stderr is not None:
        print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _print_block(lines: Sequence[str]) -> None:
    if sys.stderr is None:
        return
    from rich.text import Text

    console = make_console(sys.stderr)
    for index, line in enumerate(lines):
        text = Text(printable(line))
        if index == 0:
            text.stylize("bold red", 0, len("error:"))
        console.print(text, soft_wrap=True)


@contextlib.contextmanager
def reserved_stdout() -> Iterator[None]:
    """Send what is printed to standard output inside the block to standard error, at the level of file descriptors."""
    saved = _divert()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            _flush_c_streams()
            os.dup2(saved, 1)
            os.close(saved)


def _divert() -> int | None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        saved = os.dup(1)
    except OSError:  # closed: there is nothing to keep clean
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(saved)
        return None
    return saved


def _flush_c_streams() -> None:
    """`printf` of a runtime is buffered by the C library, and would come out after standard output is given back."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)


def tolerate_any_character() -> None:
    """A terminal or locale that lacks a character shows a replacement and does not break the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def abandon_stdout() -> None:
    """After a broken pipe: what is still buffered goes nowhere, so that Python's exit is quiet."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
