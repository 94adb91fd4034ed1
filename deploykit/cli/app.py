"""The `deploykit` program: its commands, and what becomes of their answers and errors.

Every command is a function that returns an `Answer` or raises; only this module prints results and picks exit codes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, ParamSpec

import typer

from deploykit._version import __version__
from deploykit.cli.commands import device
from deploykit.cli.commands.build import build
from deploykit.cli.commands.compare import compare
from deploykit.cli.commands.doctor import doctor
from deploykit.cli.commands.export import export
from deploykit.cli.commands.inspect import inspect
from deploykit.cli.commands.lint import lint
from deploykit.cli.commands.profile import profile
from deploykit.cli.commands.prune import prune
from deploykit.cli.commands.pull import pull
from deploykit.cli.commands.push import push
from deploykit.cli.commands.release import release
from deploykit.cli.commands.report import report
from deploykit.cli.commands.run import run as run_artifact
from deploykit.cli.commands.sbom import sbom
from deploykit.cli.commands.sensitivity import sensitivity
from deploykit.cli.commands.serve import serve
from deploykit.cli.commands.sign import sign
from deploykit.cli.commands.store import gc
from deploykit.cli.commands.targets import targets
from deploykit.cli.commands.triton import triton
from deploykit.cli.commands.tune import tune
from deploykit.cli.commands.tune_serving import tune_serving
from deploykit.cli.commands.verify import verify
from deploykit.cli.output import (
    Answer,
    Finished,
    Interrupted,
    abandon_stdout,
    report_defect,
    report_error,
    reserved_stdout,
    tolerate_any_character,
    write_answer,
)
from deploykit.cli.parameters import Debug, Json
from deploykit.contract.errors import DeploykitError, UsageError

_PROGRAM = "deploykit"
_BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended
_FLAGS = frozenset({"--json", "--debug"})  # that every command has, and that `run` acts on
_LISTINGS: dict[str, Callable[..., Answer]] = {}
"""Commands that have no arguments of their own, by name."""
P = ParamSpec("P")

app = typer.Typer(
    name=_PROGRAM,
    help="Export a PyTorch model to any edge or server target, and prove that the export is right.",
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse, run the command, write its answer or error; see `deploykit.cli.main`."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    as_json, debug = "--json" in arguments, "--debug" in arguments
    tolerate_any_character()
    try:
        try:
            return _run(arguments, as_json=as_json)
        except DeploykitError as error:
            return report_error(error, as_json=as_json, debug=debug)
        except BrokenPipeError:
            raise
        except Exception as error:
            return _foreign(error, as_json=as_json, debug=debug)
        except KeyboardInterrupt:
            return report_error(Interrupted("interrupted"), as_json=as_json, debug=debug)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
        return _BROKEN_PIPE


def _run(arguments: list[str], *, as_json: bool) -> int:
    listing = _LISTINGS.get(arguments[0]) if _FLAGS.issuperset(arguments[1:]) else None
    try:
        # The parser of today's Typer imports pydantic, a third of what a listing takes; there is nothing to parse.
        result = listing() if listing else app(arguments, prog_name=_PROGRAM, standalone_mode=False)
    except Finished as finished:
        result = finished.answer
    if isinstance(result, Answer):
        write_answer(result, as_json=as_json)
        return result.exit_code
    return result if isinstance(result, int) else 0  # the code of `typer.Exit`, after --help


def _foreign(error: Exception, *, as_json: bool, debug: bool) -> int:
    """A refusal of the argument parser, or a defect.

    The parser's exceptions are told by their interface: which module they live in differs between versions of Typer.
    """
    if isinstance(error, typer.Abort):
        return report_error(Interrupted("aborted"), as_json=as_json, debug=debug)
    describe = getattr(error, "format_message", None)
    if describe is None:
        return report_defect(error, as_json=as_json)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else _PROGRAM
    return report_error(UsageError(describe(), hint=f"{path} --help"), as_json=as_json, debug=debug)


def _guarded(function: Callable[P, Answer]) -> Callable[P, Answer]:
    """A command whose libraries cannot write to standard output, nor end the program."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Answer:
        with reserved_stdout():
            try:
                return function(*args, **kwargs)
            except KeyboardInterrupt as error:  # Typer's own handling differs between versions
                hint = "; ".join(getattr(error, "__notes__", ())) or None
                raise Interrupted("interrupted; nothing half-written is left", hint=hint) from error
            except SystemExit as error:  # a model's script that exits must not look like an export that succeeded
                raise UsageError(f"code that was imported called sys.exit({error.code!r})") from error

    return guarded


def _command(function: Callable[P, Answer]) -> None:
    """Register a command; its name is that of the function's module."""
    guarded, name = _guarded(function), function.__module__.rpartition(".")[2].replace("_", "-")
    app.command(name)(guarded)
    if {"json", "debug"}.issuperset(function.__code__.co_varnames[: function.__code__.co_argcount]):
        _LISTINGS[name] = guarded


_COMMANDS: tuple[Callable[..., Answer], ...] = (
    *(export, tune, sensitivity, prune, release, build),
    *(targets, inspect, lint, verify, profile, compare, report, run_artifact),
    *(serve, tune_serving, triton, doctor),
    *(sign, push, pull, sbom),
)
for _function in _COMMANDS:
    _command(_function)


def _group(name: str, summary: str, *functions: Callable[..., Answer]) -> None:
    """Register commands of two words; the second is the function's name, without a last `_`."""
    group = typer.Typer(help=summary, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
    for function in functions:
        group.command(function.__name__.rstrip("_"))(_guarded(function))
    app.add_typer(group, name=name)


_group("device", "Boards by name: write them down, list them, run artifacts on them, free them.", *device.COMMANDS)
_group("store", "The store that releases are kept in.", gc)


def _show_version(wanted: bool) -> None:
    if wanted:
        raise Finished(Answer({"version": __version__}, [f"{_PROGRAM} {__version__}"]))


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a PyTorch model to any edge or server target, and prove that the export is right."""
