"""Compile, check and profile the MIGraphX program of the artifact that this file lies in. Runs on the device.

    python3 build_model.py                        compile, run the golden data, measure
    python3 build_model.py --probe                say what is here
    python3 build_model.py --exhaustive-tune      try every kernel; compiles for much longer
    python3 build_model.py --runtime onnxruntime  use ONNX Runtime's MIGraphX provider instead

Needs MIGraphX's Python bindings (ROCm) or an ONNX Runtime with its MIGraphX provider, and NumPy; Python 3.8 is enough.
Precision is in the ONNX file: float16 tensors, q/dq nodes; bfloat16, which MIGraphX's parser does not read, is made by
MIGraphX itself. A provider that silently falls back to the CPU, or does not do what it was asked, is an error here.

Writes `model.mxr` (or the provider's cache folder) and `build.json` (the report). Exit codes: 2 usage, 3 package
missing, 4 refused by MIGraphX, 6 outputs differ from the golden data, 8 not on the GPU, 9 damaged file, 10 no device.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from deploykit_targets._on_device import board
else:
    sys.dont_write_bytecode = True  # the artifact stays as it is
    import board  # copied into the artifact beside this file

BuildError = board.BuildError

PROGRAM_FILE, CACHE, REPORT = "model.mxr", "cache", "build.json"
PROVIDER = "MIGraphXExecutionProvider"
# What ONNX Runtime's provider must be told for a precision that is not in the file. float16 tensors and q/dq nodes
# are: its int8 and fp8 switches would quantize once more, from a table (onnxruntime/core/providers/migraphx/
# migraphx_execution_provider.cc at 03c125006fc8).
PROVIDER_SWITCHES = {"bf16": "migraphx_bf16_enable"}
_ALL_SWITCHES = tuple(f"migraphx_{precision}_enable" for precision in ("fp16", "bf16", "fp8", "int8"))
WARM_UP = 10
_NODES = "/sys/class/kfd/kfd/topology/nodes"


# -- the machine --------------------------------------------------------------------------------------------


def find_gpu(driver: str = "/dev/kfd", nodes: str = _NODES) -> dict[str, Any]:
    """The first AMD GPU that the kernel's driver lists.

    Raises:
        BuildError: there is no driver, no permission, or no GPU; nothing of ROCm has been touched then.
    """
    if not os.path.exists(driver):
        raise BuildError(10, "there is no AMD GPU driver on this machine", "run this on the device of the artifact")
    if not os.access(driver, os.R_OK | os.W_OK):
        raise BuildError(10, f"no permission to use {driver}", "add this user to the groups video and render")
    for folder in sorted(Path(nodes).glob("*")):
        properties = dict(line.split(" ", 1) for line in (folder / "properties").read_text().splitlines() if line)
        version = int(properties.get("gfx_target_version", "0"))
        if version:
            name = (folder / "name").read_text().strip() if (folder / "name").is_file() else ""
            return {"arch": gfx_name(version), "device": name or gfx_name(version)}
    raise BuildError(10, "the AMD driver lists no GPU", "check `rocminfo`")


def gfx_name(version: int) -> str:
    """`gfx_target_version` of the kernel -> LLVM's name: 90402 is gfx942, 90010 is gfx90a, 110000 is gfx1100."""
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}"


def import_migraphx() -> Any:
    """Import MIGraphX's bindings; the placeholder of that name on the package index does not count."""
    try:
        import migraphx
    except ImportError as error:
        message = f"MIGraphX's Python bindings cannot be imported by {sys.executable}: {error}"
        raise BuildError(
            3, message, "install ROCm's package `migraphx`, and add /opt/rocm/lib to PYTHONPATH"
        ) from error
    if not hasattr(migraphx, "parse_onnx"):
        message = "the installed `migraphx` is a placeholder without content"
        raise BuildError(3, message, "pip uninstall migraphx; install ROCm's package `migraphx`")
    return migraphx


# -- MIGraphX -----------------------------------------------------------------------------------------------


def compile_program(migraphx: Any, blueprint: dict[str, Any], options: Any) -> Any:
    """Parse and compile the artifact's ONNX file.

    Raises:
        BuildError: MIGraphX refused; carries its message.
    """
    try:
        program = migraphx.parse_onnx(str(model_file(blueprint, options)), **_shapes(migraphx, blueprint, options))
        if blueprint["precision"] == "bf16":
            migraphx.quantize_bf16(program)
        target = migraphx.get_target("gpu")
        program.compile(target, offload_copy=True, fast_math=options.fast_math, exhaustive_tune=options.exhaustive_tune)
    except RuntimeError as error:
        raise BuildError(4, f"MIGraphX refuses the model: {error}") from error
    return program


def model_file(blueprint: dict[str, Any], options: Any) -> Path:
    """The artifact's ONNX file.

    Raises:
        BuildError: code 9; it is gone.
    """
    path: Path = options.artifact / blueprint["model"]
    if not path.is_file():
        raise BuildError(9, f"{blueprint['model']} is not beside this program", "copy the artifact again")
    return path


def _shapes(migraphx: Any, blueprint: dict[str, Any], options: Any) -> dict[str, Any]:
    """Sizes as in the example, except of dynamic axes, which get their ranges.

    MIGraphX takes fixed sizes or ranges, never both: with one dynamic input, the others are ranges of one size.
    """
    inputs = blueprint["inputs"]
    if not any(isinstance(size, str) for spec in inputs for size in spec["shape"]):
        return {"map_input_dims": {spec["name"]: list(spec["example"]) for spec in inputs}}
    dimension = migraphx.shape.dynamic_dimension
    ranges = {
        name: [dimension(low[axis], high[axis]) for axis in range(len(low))]
        for name, (low, _, high) in board.shape_ranges(blueprint, options).items()
    }
    return {"map_dyn_input_dims": ranges}


class BuiltModel:
    """A compiled program; MIGraphX copies to and from the GPU itself (`offload_copy`)."""

    def __init__(self, migraphx: Any, program: Any, blueprint: dict[str, Any]) -> None:
        self._migraphx, self._program, self._blueprint = migraphx, program, blueprint

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Run once, from host arrays to host arrays."""
        known = set(self._program.get_parameter_names())
        given = {name: self._migraphx.argument(np.ascontiguousarray(array)) for name, array in feeds.items()}
        try:
            results = self._program.run({name: value for name, value in given.items() if name in known})
        except RuntimeError as error:
            raise BuildError(10, f"the program failed to run: {error}") from error
        specs = self._blueprint["outputs"]
        return {
            spec["name"]: np.array(result).astype(spec["dtype"])
            for spec, result in zip(specs, results)  # noqa: B905
        }

    def profile(self, feeds: dict[str, Any], runs: int) -> dict[str, Any]:
        """Time whole runs on the host's clock; the copies make each run wait for the GPU."""
        return timed(self, feeds, runs, "MIGraphX gives no time per kernel to Python: see `migraphx-driver perf`")


# -- ONNX Runtime's provider --------------------------------------------------------------------------------


class Provider:
    """The model in ONNX Runtime with the MIGraphX provider.

    Raises:
        BuildError: code 8 where ONNX Runtime would run it on the CPU, or in another precision; 4 where it refuses.
    """

    def __init__(self, ort: Any, blueprint: dict[str, Any], options: Any, cache: Path) -> None:
        cache.mkdir(exist_ok=True)
        settings = {"device_id": "0", "migraphx_model_cache_dir": str(cache)}
        if options.exhaustive_tune:
            settings["migraphx_exhaustive_tune"] = "1"
        switch = PROVIDER_SWITCHES.get(blueprint["precision"])
        if switch:
            settings[switch] = "1"
        self._names = [spec["name"] for spec in blueprint["outputs"]]
        self._session = open_session(ort, model_file(blueprint, options), settings)
        check_active(self._session, switch)

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Run once, from host arrays to host arrays."""
        return dict(zip(self._names, self._session.run(self._names, feeds)))  # noqa: B905  (Python 3.8)

    def profile(self, feeds: dict[str, Any], runs: int) -> dict[str, Any]:
        """Time whole runs on the host's clock."""
        return timed(self, feeds, runs, "one node holds the whole graph, so there is no time per layer")


def open_session(ort: Any, model: Path, settings: dict[str, str]) -> Any:
    """A session of the provider; one that does not know a setting refuses it, and is not tried without.

    Raises:
        BuildError: code 4; carries what ONNX Runtime says.
    """
    try:
        return ort.InferenceSession(str(model), providers=[(PROVIDER, settings)], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        hint = "install a newer onnxruntime-migraphx for this ROCm, or use --runtime migraphx"
        raise BuildError(4, f"ONNX Runtime's {PROVIDER} refuses the model or a setting: {error}", hint) from error


def check_active(session: Any, switch: str | None) -> None:
    """Refuse a session that does not run where, or in what, it was asked to.

    Args:
        session: as opened.
        switch: the switch of the precision; no other may be on. `ORT_MIGRAPHX_*` variables win over settings, and a
            provider for an older ROCm takes the bfloat16 switch and turns it off; the session's own settings show both.
    Raises:
        BuildError: code 8.
    """
    active = session.get_providers()
    if PROVIDER not in active:  # the list of *available* providers says nothing
        message = f"ONNX Runtime runs the model on {', '.join(active)}, not on {PROVIDER}"
        raise BuildError(8, message, "install onnxruntime-migraphx for this ROCm, or use --runtime migraphx")
    reported = session.get_provider_options().get(PROVIDER)
    if reported is None:  # nothing is said: what was asked for was taken, unknown settings are refused
        return
    on = [name for name in _ALL_SWITCHES if str(reported.get(name, "0")).lower() in ("1", "true")]
    if on != ([switch] if switch else []):
        message = (
            f"{PROVIDER} runs with {', '.join(on) or 'no precision switch'}; the artifact needs {switch or 'none'}"
        )
        raise BuildError(8, message, "unset ORT_MIGRAPHX_*; bfloat16 needs ROCm 6.4.2, or use --runtime migraphx")


def timed(engine: Any, feeds: dict[str, Any], runs: int, note: str) -> dict[str, Any]:
    """Warm up and time `runs` runs of an engine."""
    for _ in range(WARM_UP):
        engine.run(feeds)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        engine.run(feeds)
        times.append((time.perf_counter() - start) * 1e3)
    rows = next(iter(feeds.values())).shape[:1]
    return {
        "latency_ms": board.percentiles(times),
        "run_ms": times,
        "throughput_per_s": runs * int(rows[0] if rows else 1) / (sum(times) / 1e3),
        "warm_up": WARM_UP,
        "runs": runs,
        "device_memory_bytes": None,
        "layers": {},
        "notes": ["host clock around whole runs, copies included", note],
    }


# -- the program --------------------------------------------------------------------------------------------


def probe(options: Any) -> dict[str, Any]:
    """What is here: driver, GPU, MIGraphX. Never crashes: the driver's files are looked at first."""
    gpu = find_gpu()
    return {**gpu, **runtime_facts(import_runtime(options), options), "python": sys.executable}


def import_runtime(options: Any) -> Any:
    """The module that the chosen runtime needs."""
    if options.runtime == "migraphx":
        return import_migraphx()
    try:
        import onnxruntime
    except ImportError as error:
        raise BuildError(3, f"ONNX Runtime cannot be imported: {error}", "pip install onnxruntime-migraphx") from error
    return onnxruntime


def runtime_facts(module: Any, options: Any) -> dict[str, Any]:
    """Which runtime it is, and its version under its own name, as far as the module says it."""
    return {"runtime": options.runtime, options.runtime: str(getattr(module, "__version__", "unknown"))}


def open_engine(blueprint: dict[str, Any], options: Any, folder: Path) -> Any:
    """What was built into `folder`.

    Raises:
        BuildError: code 9 where nothing was built, 10 where MIGraphX refuses what was.
    """
    find_gpu()
    runtime = import_runtime(options)
    if options.runtime == "onnxruntime":
        return Provider(runtime, blueprint, options, folder / CACHE)
    if not (folder / PROGRAM_FILE).is_file():
        raise BuildError(9, f"there is no {PROGRAM_FILE} in {folder}", "build it first, or copy the artifact again")
    try:
        program = runtime.load(str(folder / PROGRAM_FILE))
    except RuntimeError as error:
        hint = "build it again here: programs belong to one GPU and one MIGraphX"
        raise BuildError(10, f"MIGraphX refuses {PROGRAM_FILE}: {error}", hint) from error
    return BuiltModel(runtime, program, blueprint)


def main(options: Any) -> Any:
    """Do what the command line asks; returns the report."""
    if options.probe:
        return probe(options)
    if options.serve:
        board.serve(lambda: open_engine(board.read_blueprint(options.artifact), options, options.artifact))
        return None
    blueprint = board.read_blueprint(options.artifact)
    check_options(blueprint, options)
    out = board.folder_for_output(options)
    inputs, outputs = board.golden_of(options, blueprint)  # before a compilation of an hour
    model_file(blueprint, options)
    gpu = find_gpu()
    check_device(blueprint, gpu, options)
    runtime = import_runtime(options)
    start = time.time()
    if options.runtime == "migraphx":
        program = compile_program(runtime, blueprint, options)
        runtime.save(program, str(out / PROGRAM_FILE))
    engine = open_engine(blueprint, options, out)
    report = {"build_seconds": round(time.time() - start, 1), **gpu, **runtime_facts(runtime, options)}
    report["notes"] = blueprint.get("notes", [])
    if options.runtime == "migraphx":
        report["program_sha256"] = hashlib.sha256((out / PROGRAM_FILE).read_bytes()).hexdigest()
    report["layers"], report["layers_source"] = [], "the ONNX file; MIGraphX does not say it per node"
    report["golden"] = board.check_golden(engine, inputs, outputs, blueprint)
    if options.runs and inputs:
        report["profile"] = engine.profile(inputs[0], options.runs)
    board.write_whole(out / REPORT, json.dumps(report, indent=1).encode())
    return report


def check_options(blueprint: dict[str, Any], options: Any) -> None:
    """Refuse what would be ignored.

    Raises:
        BuildError: code 2.
    """
    board.given_ranges(blueprint["inputs"], options.shape)
    if options.fast_math and options.runtime == "onnxruntime":
        message = "ONNX Runtime's MIGraphX provider always turns --fast-math off"
        raise BuildError(2, message, "pass --no-fast-math, or --runtime migraphx")


def check_device(blueprint: dict[str, Any], gpu: dict[str, Any], options: Any) -> None:
    """Refuse to compile for another GPU than the artifact's, unless told to."""
    if gpu["arch"] != blueprint["arch"] and not options.any_device:
        message = (
            f"the artifact is for {blueprint['device']} ({blueprint['arch']}); this is {gpu['device']} ({gpu['arch']})"
        )
        raise BuildError(10, message, "build it on that device, or pass --any-device")


def parse(arguments: list[str], blueprint_options: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line; defaults are the options that the artifact was exported with."""
    command = board.parser_of((__doc__ or "").splitlines()[0])
    command.add_argument(
        "--runtime", choices=("migraphx", "onnxruntime"), default=blueprint_options.get("runtime", "migraphx")
    )
    board.add_shape_options(command, blueprint_options)
    tune, fast = blueprint_options.get("exhaustive_tune", False), blueprint_options.get("fast_math", False)
    for name, default in (("exhaustive-tune", tune), ("fast-math", fast)):
        command.add_argument(f"--{name}", action="store_true", default=default)
        command.add_argument(
            f"--no-{name}", action="store_false", dest=name.replace("-", "_"), help="over the blueprint's"
        )
    command.add_argument("--any-device", action="store_true", help="compile although the GPU is another one")
    return command.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(board.run_cli(main, parse))
