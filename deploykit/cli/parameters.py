"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import note
from deploykit.contract.errors import CalibrationError, DeploykitError, UsageError

if TYPE_CHECKING:
    from deploykit.contract.progress import Listener
    from deploykit.judge.parity import Tolerance
    from deploykit.plugin.artifact import Artifact


def _targets(incomplete: str) -> list[str]:
    """Names that the shell offers for --target."""
    from deploykit.plugin.registry import targets

    return [info.name for info in targets() if info.name.startswith(incomplete)]


def _precisions(incomplete: str) -> list[str]:
    """Names that the shell offers for --precision."""
    from deploykit.contract.precision import Precision, registered

    return [name for name in ("auto", *Precision, *registered()) if name.startswith(incomplete)]


# Both are acted on in `app.run`, which must know them even where the parsing of the rest fails.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

ArtifactPath = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Folder of an exported artifact.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime; all usable cores if not given.")
]
Board = Annotated[
    str | None,
    typer.Option(
        "--board",
        metavar="ADDRESS",
        help="Run on this machine, as for ssh (user@host): copies the artifact there and executes it.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="PUBLIC_KEY", help="PEM file: refuse the artifact unless this key has signed it."),
]
PlainHttp = Annotated[
    bool, typer.Option("--plain-http", help="Ask the registry without TLS; one on this machine is asked so anyway.")
]
AllowNative = Annotated[
    bool,
    typer.Option("--allow-native", help="Run native code of an artifact that was made elsewhere and has no --key."),
]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the toolchain; repeatable.")
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="PACKAGE.MODULE:FACTORY",
        help="Function that returns the model, or model and example inputs; the current folder is searched, too.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Device, toolchain, or device:toolchain; see `deploykit targets`.  [default: x86-cpu]",
        autocompletion=_targets,
    ),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision", help="Such as fp32, fp16, int8, int8-dynamic.  [default: int8]", autocompletion=_precisions
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Data for static precisions: .npz or .safetensors with an array per input, .npy for one, or `synthetic`.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", help="Folder of the artifact.  [default: out/MODEL-TARGET-PRECISION]"),
]
Include = Annotated[
    list[str] | None, typer.Option("--include", metavar="PATTERN", help="Quantise only these layers; repeatable.")
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Keep these layers in float; repeatable.")
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE.MODULE:FUNCTION",
        help="Task metric, higher is better: fn(session) gives one number, or a score for each sample.",
    ),
]
Method = Annotated[str, typer.Option(help="How ranges are chosen: default, best, minmax, percentile, entropy or mse.")]
Algorithms = Annotated[
    list[str] | None,
    typer.Option("--algorithm", metavar="NAME", help="Run this algorithm over the prepared model; repeatable."),
]
MinSqnrDb = Annotated[
    float | None,
    typer.Option("--min-sqnr-db", help="Parity gate: SQNR in dB to reach, instead of the precision's default."),
]
MinCosine = Annotated[float | None, typer.Option("--min-cosine", help="Parity gate, -1 to 1.")]
MinTop1Agreement = Annotated[float | None, typer.Option("--min-top1-agreement", help="Parity gate, 0 to 1.")]
MaxDrop = Annotated[float | None, typer.Option(help="How much lower the metric may be, in its own unit.")]
DynamicBatch = Annotated[bool, typer.Option("--dynamic-batch", help="Keep axis 0 of every input dynamic.")]
DynamicShapes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT=AXES",
        help="Dynamic axes of an input, such as x=batch,3,height,width: a name is dynamic, a number fixed; repeatable.",
    ),
]
Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="Write each step and its seconds to standard error.  [default: on a terminal]",
        show_default=False,
    ),
]
CacheDir = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Keep calibration statistics here, and reuse them.")
]
MinPlacement = Annotated[
    float | None, typer.Option(help="Share of multiply-accumulates, 0 to 1, that must run in the precision.")
]
MinSpeedup = Annotated[
    float | None, typer.Option(help="How many times faster than the float build it must be, measured here.")
]
FollowedRecipe = Annotated[
    str | None,
    typer.Option("--recipe", metavar="FILE", help="Follow this recipe, as `tune` and `inspect --recipe` write them."),
]
NoProfile = Annotated[bool, typer.Option("--no-profile", help="Measure no speed.")]
NoStrict = Annotated[
    bool, typer.Option("--no-strict", help="Keep an artifact that misses a gate, marked failed, and exit with 0.")
]


_SYNTHETIC = "synthetic"


def check_calibration(calibration: str | None) -> None:
    """Refuse a calibration file that is not there, before the model is built, because that takes longest.

    Raises:
        CalibrationError: there is no such file.
    """
    if calibration is not None and calibration != _SYNTHETIC and not Path(calibration).is_file():
        raise CalibrationError(
            f"there is no calibration file {calibration!r}",
            hint=f"pass an .npz, .npy or .safetensors file with an array per input, or `--calibration {_SYNTHETIC}`",
        )


def search_current_folder() -> None:
    """An installed program does not search the folder it is called in, where the user's modules are."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def function_of(name: str, path: str | None) -> Any:
    """The user's function behind `package.module:function`; None where none is named.

    What the function raises is told as a UsageError with the line that raised; from Python it would pass as it is.

    Raises:
        UsageError: there is no such module or function, or importing it fails.
    """
    if path is None:
        return None
    module, separator, attribute = path.partition(":")
    if not separator or not module or not attribute:
        raise UsageError(
            f"{name} {path!r} is not of the form package.module:function", hint=f"{name} my.module:{name[2:]}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{name} {path}: {error}", hint="the current folder and installed packages are searched"
        ) from error
    except Exception as error:
        raise UsageError(f"{name} {path}: importing {module} raised {_raised(error)}", hint=_SHOW) from error
    if not callable(found):
        raise UsageError(f"{name} {path} is no function")

    @functools.wraps(found)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return found(*args, **kwargs)
        except DeploykitError:
            raise
        except Exception as error:
            raise UsageError(f"{name} {path} raised {_raised(error)}", hint=_SHOW) from error

    return told


_SHOW = "--debug shows the traceback"


def _raised(error: Exception) -> str:
    """An exception of the user's code in one line, with the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    text = str(error).strip()
    return f"{type(error).__name__}{f': {text.splitlines()[0]}' if text else ''}{where}"


def load_on(path: str, board: str | None, *, key: str | None = None, allow_native: bool = False) -> Artifact:
    """Load an artifact, to be run here or on the board that the user named."""
    from deploykit.plugin.artifact import load

    found = load(path, key=key, allow_native=allow_native)
    if board is None:
        return found
    note(f"this copies a program to {board} over SSH and executes it there")
    return found.on_board(board)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` strings as a mapping. The toolchain gives the strings their types; lists and tables are JSON."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not separator or not key:
            raise UsageError(f"--option {pair!r} is not of the form key=value", hint="--option opset=18")
        if key in found:
            raise UsageError(f"--option {key} is given twice")
        found[key] = _value_of(key, value.strip())
    return found


def listener(wanted: bool | None) -> bool | Listener:
    """What `progress=` is given: steps are shown on a terminal, everywhere where asked for, or never."""
    from deploykit.pipeline.progress import Lines

    if wanted is None or not wanted:
        return wanted is None
    return True if sys.stderr is not None and sys.stderr.isatty() else Lines()


def axes_by_name(given: Sequence[str] | None) -> dict[str, dict[int, str]] | None:
    """`x=batch,3,height` as the API has it, `{"x": {0: "batch", 2: "height"}}`; None where nothing is given.

    Raises:
        UsageError: of another form, an input twice, or an axis that is neither a name nor a size.
    """
    found: dict[str, dict[int, str]] = {}
    for text in given or ():
        name, separator, axes = text.partition("=")
        name, hint = name.strip(), "--dynamic-shapes x=batch,3,height,width"
        if not separator or not name or not axes.strip():
            raise UsageError(f"--dynamic-shapes {text!r} is not of the form INPUT=AXIS,AXIS,...", hint=hint)
        if name in found:
            raise UsageError(f"--dynamic-shapes {name} is given twice", hint="give all axes of an input at once")
        sizes = [axis.strip() for axis in axes.split(",")]
        odd = [axis for axis in sizes if not (axis.isidentifier() or axis.isdigit())]
        if odd:
            message = f"--dynamic-shapes {text!r}: {odd[0]!r} is neither a name of a dynamic axis nor a fixed size"
            raise UsageError(message, hint=hint)
        found[name] = {at: axis for at, axis in enumerate(sizes) if not axis.isdigit()}
    return found or None


def _value_of(key: str, text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"--option {key}: {text!r} is not valid JSON: {error}") from error


def tolerance_from(
    precision: str, min_sqnr_db: float | None, min_cosine: float | None, min_top1: float | None
) -> Tolerance | None:
    """The default gate of the precision with the given figures in it; None where none was given."""
    given = {"min_sqnr_db": min_sqnr_db, "min_cosine": min_cosine, "min_top1_agreement": min_top1}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return None
    from deploykit.contract.precision import known
    from deploykit.judge.parity import Tolerance, tolerance_of

    found = known(precision)
    return replace(Tolerance() if found is None else tolerance_of(found), **changes)
