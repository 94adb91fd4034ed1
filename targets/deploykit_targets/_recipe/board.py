"""What every recipe needs on the device: golden data, comparison, timing statistics, and serving an engine over pipes.

This file is copied into artifacts. It runs where deploykit may not be installed: Python 3.8 and NumPy are enough, so
it imports nothing else and repeats in small what deploykit has in `parity.py` and `artifact.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


class RecipeError(Exception):
    """A step that cannot be done.

    Args:
        code: exit code: 2 usage, 3 package missing, 4 build refused, 9 damaged file, 10 no device.
        hint: what to do next.
    """

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read `recipe.json`: what the artifact is, for which device, and the options of its build."""
    try:
        recipe: dict[str, Any] = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"recipe.json beside this program cannot be read: {error}"
        raise RecipeError(9, message, "copy the artifact again") from error
    return recipe


def read_golden(folder: Path, recipe: dict[str, Any]) -> tuple[Any, ...]:
    """Read the golden samples.

    Returns:
        Two lists of dicts of arrays, inputs and expected outputs by name; both empty where there is no file yet.
    """
    path = folder / "golden.safetensors"
    if not path.is_file():
        return [], []
    tensors = read_safetensors(path)
    count = len({name.split(".", 2)[1] for name in tensors})

    def sample(kind: str, index: int) -> dict[str, Any]:
        specs = recipe[kind + "s"]
        return {spec["name"]: tensors[f"{kind}.{index}.{spec['name']}"] for spec in specs}

    return [sample("input", i) for i in range(count)], [sample("output", i) for i in range(count)]


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file into arrays by name; see the format's own description (8-byte size, JSON, raw data)."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        values = np.frombuffer(data[8 + size + start : 8 + size + end], _SAFETENSORS_DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def compare(expected: list[Any], got: list[Any]) -> dict[str, Any]:
    """SQNR in dB and largest absolute difference per output, over all samples."""
    found = {}
    for name in expected[0]:
        pairs = [(np.float64(a[name]), np.float64(b[name])) for a, b in zip(expected, got)]  # noqa: B905  (Python 3.8 has no strict=)
        signal = sum(float(np.sum(a * a)) for a, _ in pairs)
        noise = sum(float(np.sum((a - b) ** 2)) for a, b in pairs)
        largest = max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in pairs)
        found[name] = {"sqnr_db": _decibel(signal, noise), "max_abs": largest}
    return found


def _decibel(signal: float, noise: float) -> float:
    if not np.isfinite(noise):
        return -200.0
    if noise <= 0.0:
        return 200.0
    return float(np.clip(10 * np.log10(signal / noise), -200, 200)) if signal > 0 else -200.0


def percentiles(milliseconds: list[Any]) -> dict[str, Any]:
    """p50, p90, p99, mean and minimum of at least one run."""
    p50, p90, p99 = (float(p) for p in np.percentile(milliseconds, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99, "mean": float(np.mean(milliseconds)), "minimum": min(milliseconds)}


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


# -- serving ------------------------------------------------------------------------------------------------


def write_frame(stream: BinaryIO, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Send a JSON header and arrays: length of the header, header, then the bytes of every array in turn."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": described}).encode()
    stream.write(struct.pack("<I", len(text)) + text)
    for array in arrays.values():
        stream.write(array.tobytes())
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[Any, ...]:
    """Receive what `write_frame` sent; `(None, {})` where the other side has gone."""
    size = stream.read(4)
    if len(size) < 4:
        return None, {}
    header = json.loads(stream.read(struct.unpack("<I", size)[0]))
    arrays = {}
    for name, dtype, shape in header.pop("arrays"):
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(stream.read(count), dtype).reshape(shape)
    return header, arrays


def serve(open_engine: Any) -> None:
    """Open an engine and answer frames on stdin until it closes.

    Args:
        open_engine: makes an object with `run(feeds) -> outputs` and `profile(feeds, runs) -> report`. That it cannot
            be opened is the first answer.
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a vendor library prints must not land between two frames
    try:
        engine = open_engine()
        write_frame(replies, {"ready": True}, {})
        while _answer(engine, replies):
            pass
    except RecipeError as failure:
        write_frame(replies, _described(failure), {})


def _answer(engine: Any, replies: BinaryIO) -> bool:
    header, arrays = read_frame(sys.stdin.buffer)
    if header is None:
        return False
    try:
        if header["command"] == "profile":
            write_frame(replies, {"report": engine.profile(arrays, header["runs"])}, {})
        else:
            write_frame(replies, {}, engine.run(arrays))
    except RecipeError as failure:
        write_frame(replies, _described(failure), {})
    return True


def _described(failure: RecipeError) -> dict[str, Any]:
    return {"error": str(failure), "hint": failure.hint, "code": failure.code}


# -- the program --------------------------------------------------------------------------------------------


def parser_of(description: str, add_help: bool = True) -> argparse.ArgumentParser:
    """The options that every recipe has."""
    parser = argparse.ArgumentParser(description=description, add_help=add_help)
    parser.add_argument("--artifact", type=Path, default=Path(sys.argv[0]).resolve().parent, help="its folder")
    parser.add_argument("--out", type=Path, help="folder for what is built; by default the artifact's own")
    parser.add_argument("--probe", action="store_true", help="only say what is installed here")
    parser.add_argument("--serve", action="store_true", help="open what was built and answer frames on stdin")
    parser.add_argument("--runs", type=int, default=100, help="measured runs; 0 measures nothing")
    return parser


def add_shape_options(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """The options of dynamic shapes; `defaults` are those that the artifact was exported with."""
    batch = "largest size of a dynamic axis 0 that --shape does not name"
    parser.add_argument("--max-batch", type=int, default=defaults.get("max_batch", 8), help=batch)
    ranges = (
        "smallest, usual and largest shape of an input with dynamic axes, as in x=1x3x224x224:4x3x224x224:8x3x224x224"
    )
    given = list(defaults.get("shapes", ()))
    parser.add_argument("--shape", action="append", default=given, metavar="NAME=MIN:OPT:MAX", help=ranges)


def shape_ranges(recipe: dict[str, Any], options: Any) -> dict[str, Any]:
    """(smallest, usual, largest) shape of every input, each a tuple of sizes, by name.

    Where `--shape` says nothing, the example's shape is the usual one, axis 0 goes from 1 to `--max-batch` and other
    dynamic axes from 1 to the example's size. The last `--shape` of an input wins.

    Raises:
        RecipeError: `--shape` is malformed, names no input, or contradicts the model's fixed sizes.
    """
    inputs = {spec["name"]: spec for spec in recipe["inputs"]}
    found = {name: _default_range(spec, options.max_batch) for name, spec in inputs.items()}
    for text in options.shape:
        name, shapes = _parse_shape(text)
        if name not in inputs:
            raise RecipeError(2, f"--shape {text}: there is no input {name!r}", f"inputs: {', '.join(inputs)}")
        _check_range(text, inputs[name], shapes)
        found[name] = shapes
    return found


def _default_range(spec: dict[str, Any], max_batch: int) -> tuple[Any, ...]:
    usual = tuple(spec["example"])
    low, high = list(usual), list(usual)
    for axis, size in enumerate(spec["shape"]):
        if isinstance(size, str):
            low[axis] = 1
            high[axis] = max(usual[axis], max_batch) if axis == 0 else usual[axis]
    return tuple(low), usual, tuple(high)


def _parse_shape(text: str) -> tuple[Any, ...]:
    """`x=1x3x8x8:4x3x8x8:8x3x8x8` -> ("x", ((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8)))."""
    name, _, ranges = text.partition("=")
    try:
        shapes = tuple(tuple(int(size) for size in part.split("x")) for part in ranges.split(":") if part)
    except ValueError:
        shapes = ()
    if not name or len(shapes) != 3:
        raise RecipeError(
            2, f"--shape {text} is not NAME=MIN:OPT:MAX", "as in --shape x=1x3x224x224:4x3x224x224:8x3x224x224"
        )
    return name, shapes


def _check_range(text: str, spec: dict[str, Any], shapes: tuple[Any, ...]) -> None:
    sizes = spec["shape"]
    if any(len(shape) != len(sizes) for shape in shapes):
        raise RecipeError(2, f"--shape {text}: {spec['name']} has {len(sizes)} axes: {sizes}")
    for axis, (size, low, usual, high) in enumerate(zip(sizes, *shapes)):  # noqa: B905 -- not in Python 3.8
        if not isinstance(size, str) and {low, usual, high} != {size}:
            raise RecipeError(2, f"--shape {text}: axis {axis} of {spec['name']} is always {size}")
        if not 1 <= low <= usual <= high:
            raise RecipeError(2, f"--shape {text}: axis {axis} is not 1 <= {low} <= {usual} <= {high}")


def run_program(main: Any, arguments: Any) -> int:
    """Run `main(arguments) -> report`; print the report, or the failure, as one line of JSON; return the exit code."""
    try:
        report = main(arguments)
    except RecipeError as failure:
        print(json.dumps(_described(failure)))
        sys.stderr.write("error: {}\n{}".format(failure, f"  -> {failure.hint}\n" if failure.hint else ""))
        return failure.code
    if report is not None:
        print(json.dumps(report))
    return 0


def run_cli(main: Any, parse: Any) -> int:
    """Read the artifact's options, parse the command line over them, and run.

    Args:
        main: takes the parsed options, returns the report.
        parse: takes arguments and the options of `recipe.json`.
    """
    arguments = sys.argv[1:]
    folder = parser_of("", add_help=False).parse_known_args(arguments)[0].artifact
    try:
        known = read_recipe(folder)["options"]
    except RecipeError:
        known = {}
    return run_program(main, parse(arguments, known))


def check_golden(engine: Any, inputs: list[Any], outputs: list[Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Run the golden inputs and compare with the golden outputs."""
    if not inputs:
        return {}
    return {"outputs": compare(outputs, [engine.run(feeds) for feeds in inputs]), "samples": len(inputs)}
