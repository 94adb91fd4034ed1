"""What every program needs on the device: golden data, comparison, timing statistics, and serving an engine over pipes.

This file is copied into artifacts. It runs where deploykit may not be installed: Python 3.8 and NumPy are enough, so
it imports nothing else and repeats in small what deploykit has in `parity.py` and `artifact.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import Any

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


# What `blueprint.json` holds: read by the programs without looking again.
_BLUEPRINT_KEYS = {"model": str, "device": str, "arch": str, "precision": str, "inputs": list, "outputs": list}
# Where the blueprint has none of its own: what two kernels that compute the same may differ by, as in `artifact.py`.
_TOLERANCE = {"min_sqnr_db": 30.0}
# Set by deploykit, which runs this program in a child process: end when stdin does.
LIFELINE = "DEPLOYKIT_LIFELINE"
GATE_MISSED = 6
"""Exit code: all is built, and the golden outputs are not reproduced."""


class BuildError(Exception):
    """A step that cannot be done.

    Args:
        code: exit code: 2 usage, 3 package missing, 4 build refused, 8 not on the device, 9 damaged file, 10 no device.
        hint: what to do next.
    """

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def read_blueprint(folder: Path) -> dict[str, Any]:
    """Read `blueprint.json`: what the artifact is, for which device, and the options of its build.

    Raises:
        BuildError: code 9; it is not there, not JSON, or lacks what a blueprint has.
    """
    try:
        blueprint: dict[str, Any] = json.loads((folder / "blueprint.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"blueprint.json beside this program cannot be read: {error}"
        raise BuildError(9, message, "copy the artifact again") from error
    wrong = _wrong_in(blueprint)
    if wrong:
        raise BuildError(9, f"blueprint.json beside this program is damaged: {wrong}", "copy the artifact again")
    return blueprint


def _wrong_in(blueprint: Any) -> str:
    if not isinstance(blueprint, dict):
        return f"it holds {json.dumps(blueprint)[:40]}, not an object"
    absent = [key for key, kind in _BLUEPRINT_KEYS.items() if not isinstance(blueprint.get(key), kind)]
    if absent:
        return f"{', '.join(absent)} missing or of the wrong kind"
    if Path(blueprint["model"]).name != blueprint["model"] or blueprint["model"] in (".", ".."):
        return "a model that is no file of the artifact's own folder"
    if not all(isinstance(blueprint.get(key, {}), dict) for key in ("options", "tolerance")):
        return "options or tolerance of the wrong kind"
    if not isinstance(blueprint.get("options", {}).get("shapes", []), list):
        return "options of the wrong kind"
    archs = blueprint.get("compute_capabilities", [])
    if not isinstance(archs, list) or not all(isinstance(arch, str) for arch in archs):
        return "compute_capabilities of the wrong kind"
    if not isinstance(blueprint.get("tolerance", _TOLERANCE).get("min_sqnr_db"), (int, float)):
        return "tolerance without min_sqnr_db"
    specs = blueprint["inputs"] + blueprint["outputs"]
    if not all(isinstance(spec, dict) and {"name", "shape", "dtype"} <= set(spec) for spec in specs):
        return "an input or output without name, shape and dtype"
    if not all(isinstance(spec.get("example"), list) for spec in blueprint["inputs"]):
        return "an input without its example's shape"
    return ""


def read_golden(folder: Path, blueprint: dict[str, Any]) -> tuple[Any, ...]:
    """Read the golden samples.

    Returns:
        Two lists of dicts of arrays, inputs and expected outputs by name; both empty where there is no file yet.
    Raises:
        BuildError: code 9; the file is damaged, or not of this blueprint.
    """
    path = folder / "golden.safetensors"
    if not path.is_file():
        return [], []
    try:
        return _golden_samples(read_safetensors(path), blueprint)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        message = f"golden.safetensors is damaged: {type(error).__name__}: {error}"
        raise BuildError(9, message, "copy the artifact again") from error


def golden_of(options: Any, blueprint: dict[str, Any]) -> tuple[Any, ...]:
    """The golden samples that a build is proved on; none where `--no-golden` says that somebody else does it.

    Raises:
        BuildError: code 9; there are none, so that nothing would be proved, or they are damaged.
    """
    if options.no_golden:
        return [], []
    samples = read_golden(options.artifact, blueprint)
    if not samples[0]:
        message = f"there is no golden data in {options.artifact} to prove the build on"
        raise BuildError(9, message, "copy the artifact again, with golden.safetensors")
    return samples


def _golden_samples(tensors: dict[str, Any], blueprint: dict[str, Any]) -> tuple[Any, ...]:
    count = len({name.split(".", 2)[1] for name in tensors})

    def sample(kind: str, index: int) -> dict[str, Any]:
        specs = blueprint[kind + "s"]
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
    """SQNR in dB and largest absolute difference per output, over all samples, as `deploykit build` has them."""
    return {name: _compared([(a[name], b[name]) for a, b in zip(expected, got)]) for name in expected[0]}  # noqa: B905  (Python 3.8 has no strict=)


def _compared(pairs: list[Any]) -> dict[str, Any]:
    sums = [_sums(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    signal, noise = sum(one[0] for one in sums), sum(one[1] for one in sums)
    decibel = _decibel(signal, noise)
    if all(np.size(a) and np.all(np.isnan(a)) for a, _ in pairs):  # agreeing on NaN everywhere proves nothing
        decibel = -200.0
    largest = max(one[2] for one in sums)
    return {"sqnr_db": decibel, "max_abs": largest if np.isfinite(largest) else float(np.finfo(np.float64).max)}


@np.errstate(over="ignore")  # what overflows is no finite noise, and fails
def _sums(reference: Any, got: Any) -> tuple[Any, ...]:
    """Signal, noise and largest difference; infinite where shapes or what is not finite differ."""
    if reference.shape != got.shape:
        return 0.0, np.inf, np.inf
    both = np.isfinite(reference) & np.isfinite(got)
    same = (reference == got) | (np.isnan(reference) & np.isnan(got))  # equal infinities are masks, and no difference
    if not np.all(both | same):
        return 0.0, np.inf, np.inf
    reference, difference = reference[both], reference[both] - got[both]
    largest = float(np.max(np.abs(difference), initial=0.0))
    return float(np.sum(reference**2)), float(np.sum(difference**2)), largest


def _decibel(signal: float, noise: float) -> float:
    if not np.isfinite(signal + noise):
        return -200.0
    if noise <= 0.0:
        return 200.0
    return float(np.clip(10 * np.log10(signal / noise), -200, 200)) if signal > 0 else -200.0


def percentiles(milliseconds: list[Any]) -> dict[str, Any]:
    """p50, p90, p99, mean and minimum of at least one run."""
    p50, p90, p99 = (float(p) for p in np.percentile(milliseconds, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99, "mean": float(np.mean(milliseconds)), "minimum": min(milliseconds)}


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one.

    Raises:
        BuildError: code 9; no permission, or no space.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise BuildError(9, message, "check space and permissions, or choose another --out") from error


# -- serving ------------------------------------------------------------------------------------------------


def serve(open_engine: Any) -> None:
    """Answer frames on standard input: deploykit starts this program for that, and brings the module of frames.

    Args:
        open_engine: makes an object with `run(feeds) -> outputs` and `profile(feeds, runs) -> report`.
    Raises:
        BuildError: code 2; somebody else started it.
    """
    frames: Any = sys.modules.get("frames")
    if frames is None:
        raise BuildError(2, "--serve is for deploykit, which opens the artifact with it", "deploykit run --help")
    channel, engine = frames.Channel(), None  # type: Any, Any
    request = channel.receive()
    while request is not None and request.kind != frames.CLOSE:
        try:
            if request.kind == frames.OPEN:
                engine, answer = open_engine(), frames.Frame(frames.ANSWER)
            elif request.kind == frames.PROFILE:
                answer = frames.Frame(frames.ANSWER, engine.profile(request.tensors, request.runs))
            else:
                answer = frames.Frame(frames.ANSWER, {}, engine.run(request.tensors))
        except BuildError as failure:
            answer = frames.Frame(frames.ERROR, _described(failure))
        channel.send(answer)
        request = channel.receive()


def _described(failure: BuildError) -> dict[str, Any]:
    return {"error": str(failure), "hint": failure.hint, "code": failure.code}


# -- the program --------------------------------------------------------------------------------------------


def parser_of(description: str, add_help: bool = True) -> argparse.ArgumentParser:
    """The options that every build program has."""
    parser = argparse.ArgumentParser(description=description, add_help=add_help)
    parser.add_argument("--artifact", type=Path, default=Path(sys.argv[0]).resolve().parent, help="its folder")
    parser.add_argument("--out", type=Path, help="folder for what is built; by default the artifact's own")
    parser.add_argument("--probe", action="store_true", help="only say what is installed here")
    parser.add_argument("--serve", action="store_true", help="open what was built and answer frames on stdin")
    parser.add_argument("--runs", type=whole_number(0), default=100, help="measured runs; 0 measures nothing")
    parser.add_argument("--no-golden", action="store_true", help="do not run the golden data: the caller does it")
    return parser


def whole_number(least: int, most: Any = None) -> Any:
    """A type for argparse: a whole number that is not below `least`, nor above `most` where there is one."""

    def number(text: str) -> int:
        value = int(text)
        if most is None and value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        if most is not None and not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return value

    number.__name__ = "whole number"  # argparse puts it into its message
    return number


def folder_for_output(options: Any) -> Path:
    """The folder that takes what is built.

    Raises:
        BuildError: code 2; it is not there.
    """
    out: Path = options.out or options.artifact
    if not out.is_dir():
        raise BuildError(2, f"--out {out} is not a folder", "make it first")
    return out


def add_shape_options(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """The options of dynamic shapes; `defaults` are those that the artifact was exported with."""
    batch = "largest size of a dynamic axis 0 that neither --shape nor the model gives bounds"
    parser.add_argument("--max-batch", type=whole_number(1), default=str(defaults.get("max_batch", 8)), help=batch)
    ranges = (
        "smallest, usual and largest shape of an input with dynamic axes, as in x=1x3x224x224:4x3x224x224:8x3x224x224"
    )
    given = list(defaults.get("shapes", ()))
    parser.add_argument("--shape", action="append", default=given, metavar="NAME=MIN:OPT:MAX", help=ranges)


def shape_ranges(blueprint: dict[str, Any], options: Any) -> dict[str, Any]:
    """(smallest, usual, largest) shape of every input, each a tuple of sizes, by name.

    Where `--shape` says nothing, the example's shape is the usual one, and dynamic axes go over the bounds that the
    model was exported with. Without such bounds axis 0 goes from 1 to `--max-batch` and other axes from 1 to the
    example's size. The last `--shape` of an input wins.

    Raises:
        BuildError: `--shape` is malformed, names no input, or contradicts the model's fixed sizes.
    """
    found = {spec["name"]: _default_range(spec, options.max_batch) for spec in blueprint["inputs"]}
    return {**found, **given_ranges(blueprint["inputs"], options.shape)}


def given_ranges(inputs: list[Any], texts: Any) -> dict[str, Any]:
    """The ranges that `--shape` gives, by input name.

    Args:
        inputs: the inputs, with name and shape each; a dynamic axis is a string.
        texts: `NAME=MIN:OPT:MAX` each; the last of an input wins.
    Raises:
        BuildError: malformed, of no input, of an input that has no dynamic axis, or outside its fixed sizes.
    """
    known = {spec["name"]: spec for spec in inputs}
    dynamic = [name for name, spec in known.items() if any(isinstance(size, str) for size in spec["shape"])]
    hint = f"inputs with dynamic axes: {', '.join(dynamic) or 'none'}"
    found = {}
    for text in texts:
        name, shapes = parse_shape(text)
        if name not in known:
            raise BuildError(2, f"--shape {text}: there is no input {name!r}", f"inputs: {', '.join(known)}; {hint}")
        if name not in dynamic:
            message = f"--shape {text}: {name} has no dynamic axis, its shape is always {known[name]['shape']}"
            raise BuildError(2, message, hint)
        _check_range(text, known[name], shapes)
        found[name] = shapes
    return found


def _default_range(spec: dict[str, Any], max_batch: int) -> tuple[Any, ...]:
    usual = tuple(spec["example"])
    low, high = list(usual), list(usual)
    bounds = spec.get("bounds") or [None] * len(usual)
    for axis, size in enumerate(spec["shape"]):
        if isinstance(size, str):
            least, most = bounds[axis] or (None, None)
            low[axis] = min(usual[axis], least or 1)
            high[axis] = max(usual[axis], most or (max_batch if axis == 0 else 1))
    return tuple(low), usual, tuple(high)


def parse_shape(text: str) -> tuple[Any, ...]:
    """`x=1x3x8x8:4x3x8x8:8x3x8x8` -> ("x", ((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8)))."""
    name, _, ranges = text.partition("=")
    try:
        shapes = tuple(tuple(int(size) for size in part.split("x")) for part in ranges.split(":") if part)
    except ValueError:
        shapes = ()
    if not name or len(shapes) != 3:
        raise BuildError(
            2, f"--shape {text} is not NAME=MIN:OPT:MAX", "as in --shape x=1x3x224x224:4x3x224x224:8x3x224x224"
        )
    return name, shapes


def _check_range(text: str, spec: dict[str, Any], shapes: tuple[Any, ...]) -> None:
    sizes = spec["shape"]
    if any(len(shape) != len(sizes) for shape in shapes):
        raise BuildError(2, f"--shape {text}: {spec['name']} has {len(sizes)} axes: {sizes}")
    for axis, (size, low, usual, high) in enumerate(zip(sizes, *shapes)):  # noqa: B905 -- not in Python 3.8
        if not isinstance(size, str) and {low, usual, high} != {size}:
            raise BuildError(2, f"--shape {text}: axis {axis} of {spec['name']} is always {size}")
        if not 1 <= low <= usual <= high:
            raise BuildError(2, f"--shape {text}: axis {axis} is not 1 <= {low} <= {usual} <= {high}")


def run_program(main: Any, arguments: Any) -> int:
    """Run `main(arguments) -> report`; print the report, or the failure, as one line of JSON; return the exit code."""
    try:
        report = main(arguments)
    except BuildError as failure:
        print(json.dumps(_described(failure)))
        sys.stderr.write("error: {}\n{}".format(failure, f"  -> {failure.hint}\n" if failure.hint else ""))
        return failure.code
    if report is not None:
        print(json.dumps(report))
    return _gate(report or {})


def _gate(report: dict[str, Any]) -> int:
    """Fail closed: what was built computes something else than the artifact says."""
    failures = report.get("golden", {}).get("failures")
    if not failures:
        return 0
    sys.stderr.write("error: the device computes something else than the reference: {}\n".format("; ".join(failures)))
    sys.stderr.write("  -> do not use what was built here; the library may have chosen kernels of lower precision\n")
    return GATE_MISSED


def run_cli(main: Any, parse: Any) -> int:
    """Read the artifact's options, parse the command line over them, and run.

    Args:
        main: takes the parsed options, returns the report.
        parse: takes arguments and the options of `blueprint.json`.
    """
    if os.environ.get(LIFELINE):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    arguments = sys.argv[1:]
    folder = parser_of("", add_help=False).parse_known_args(arguments)[0].artifact
    try:
        known = read_blueprint(folder).get("options", {})
    except BuildError:
        known = {}
    return run_program(main, parse(arguments, known))


def _end_with_parent() -> None:
    """Wait for the end of stdin, whose other end deploykit holds open as long as it lives; then end this process."""
    while os.read(0, 1):
        continue
    os.kill(os.getpid(), signal.SIGTERM)  # not sys.exit: the main thread is inside a vendor's library


def check_golden(engine: Any, inputs: list[Any], outputs: list[Any], blueprint: dict[str, Any]) -> dict[str, Any]:
    """Run the golden inputs and compare with the golden outputs.

    Returns:
        SQNR and largest difference per output, and under `failures` what is outside the blueprint's tolerance.
    """
    if not inputs:
        return {}
    found = compare(outputs, [engine.run(feeds) for feeds in inputs])
    least = {**_TOLERANCE, **blueprint.get("tolerance", {})}["min_sqnr_db"]
    failures = [
        f"SQNR of {name} is {figures['sqnr_db']:.1f} dB, below {least:g} dB"
        for name, figures in found.items()
        if not figures["sqnr_db"] >= least
    ]
    return {"outputs": found, "samples": len(inputs), "failures": failures}
