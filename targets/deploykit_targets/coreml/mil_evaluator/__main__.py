"""`python -m deploykit_targets.coreml.mil_evaluator model.mlpackage --input x.npy`: evaluate a package once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.contract.errors import ArtifactError, DeploykitError, UsageError
from deploykit_targets.coreml.mil_evaluator.program import Program, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate a package on .npy files and print or save its outputs.

    Args:
        arguments: the arguments of the command line; the process's own when None.
    Returns:
        0, or the exit code of the error that was printed.
    """
    options = _parser().parse_args(arguments)
    try:
        program = load(options.model, function=options.function, undefined_indices=options.undefined_indices)
        if options.ops:
            for name, count in program.ops().items():
                print(f"{count:6d} {name}")
            return 0
        state = program.make_state() if program.states else None
        outputs = program.run(_feeds(program, options.input), state=state, seed=options.seed)
        _report(outputs, options.output)
    except DeploykitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploykit_targets.coreml.mil_evaluator",
        description="Evaluate a Core ML ML Program in PyTorch, on any machine.",
    )
    parser.add_argument("model", type=Path, help="the .mlpackage")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]FILE.npy",
        help="an input; the name may be left out when the model has one input; repeat for more",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write each output as FOLDER/NAME.npy")
    parser.add_argument("--function", help="of a multi-function package")
    parser.add_argument("--ops", action="store_true", help="list the program's ops and stop")
    parser.add_argument("--seed", type=int, default=0, help="of random ops without a seed of their own")
    parser.add_argument("--undefined-indices", choices=("error", "clamp"), default="error")
    return parser


def _feeds(program: Program, inputs: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    names = [spec.name for spec in program.inputs]
    feeds = {}
    for item in inputs:
        name, separator, file = item.partition("=")
        if not separator:
            if len(names) != 1:
                raise UsageError(f"{item!r} names no input; the model takes {names}", hint="--input NAME=FILE.npy")
            name, file = names[0], item
        try:
            feeds[name] = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read {file}: {error}") from error
    return feeds


def _report(outputs: dict[str, np.ndarray[Any, Any]], folder: Path | None) -> None:
    for name, value in outputs.items():
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{name}.npy", value)
            print(f"{name}: {value.dtype}{list(value.shape)} -> {folder / name}.npy")
        else:
            print(f"{name}: {value.dtype}{list(value.shape)}")
            print(np.array2string(value, threshold=32, precision=6))


if __name__ == "__main__":
    sys.exit(main())
