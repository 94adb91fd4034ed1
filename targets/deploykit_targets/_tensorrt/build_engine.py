"""Build, check and profile the TensorRT engine of the artifact that this program lies in. Runs on the device.

    python3 build_engine.py                  build, run the golden data, measure
    python3 build_engine.py --probe          say what is here
    python3 build_engine.py --dla 0 --workspace-mib 4096 --shape x=1x3x224x224:4x3x224x224:8x3x224x224
    python3 build_engine.py --compile-for sm_86 --out FOLDER      compile without a GPU (TensorRT for RTX), run nothing

Needs TensorRT's Python bindings and NumPy, nothing else (Python 3.8 is enough); CUDA is called through the driver's
own library. One program for TensorRT 10.3 to 11.x and for TensorRT for RTX, which the artifact's blueprint asks for or
`--compile-for`: networks are strongly typed, so precision lives in the ONNX file
and never in builder flags. Where there is no strong typing (TensorRT 8.5 of JetPack 5, and the DLA in 10.x) the flags
of the artifact's precision are set instead.

One file, so that it is read from top to bottom and copied with `board.py` alone: CUDA, the libraries, build, run, what
layers say, the program.

Writes `model.engine`, `layers.json` (engine inspector), `timing.cache` (TensorRT for RTX: `runtime.cache`, the kernels
that it finished on this GPU) and `build.json` (the report). Exit codes: 0,
2 usage, 3 no TensorRT, 4 build refused, 6 the golden outputs are not reproduced, 9 a file is missing or damaged,
10 no such device.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

if TYPE_CHECKING or __package__:
    from deploykit_targets._on_device import board
else:
    sys.dont_write_bytecode = True  # the artifact stays as it is
    import board  # copied into the artifact beside this file

BuildError = board.BuildError

ENGINE, LAYERS, TIMING_CACHE, REPORT = "model.engine", "layers.json", "timing.cache", "build.json"
RUNTIME_CACHE = "runtime.cache"
RTX = "tensorrt_rtx"
WARM_UP = 10
LISTING = "Layers:\n"
"""How the builder's message begins that has a line for every engine layer."""
# Builder flags by precision, where networks are not strongly typed. TensorRT 11 has none of them.
LEGACY_FLAGS = {"int8": ("INT8",), "fp16": ("FP16",), "mixed": ("INT8", "FP16"), "bf16": ("BF16",), "fp8": ("FP8",)}
HARDWARE = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same-sm": "SAME_COMPUTE_CAPABILITY"}
# Whole words of the inspector's formats ("Row major linear BFloat16 format", Myelin's bare "Half") and what they are
# called here, narrowest first: a layer computes in the narrowest of its inputs. What is only an index or a mask comes
# last. The words are those of NVIDIA's engine explorer (trex) and of TensorRT's own names of its types.
PRECISIONS = {
    "fp4": "fp4",
    "fp4e2m1": "fp4",
    "e2m1": "fp4",
    "int4": "int4",
    "fp8": "fp8",
    "fp8e4m3": "fp8",
    "e4m3": "fp8",
    "int8": "int8",
    "half": "float16",
    "fp16": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "float32": "float32",
    "double": "float64",
    "fp64": "float64",
    "uint8": "uint8",
    "int16": "int16",
    "uint16": "uint16",
    "int32": "int32",
    "uint32": "uint32",
    "int64": "int64",
    "uint64": "uint64",
    "bool": "bool",
}
# Types of engine layers that multiply and accumulate, as parts of their names (CaskConvolution, CaskGemmConvolution,
# gemm, correlation); DLA and Myelin layers are whole subgraphs and hold such a step.
MULTIPLIES = (
    *("convolution", "convact", "correlation", "deconv", "gemm", "matrixmultiply", "fullyconnected", "dla", "myelin"),
    "runtime_fusion",
)
# A fused chain of pointwise steps (`MulAddReluMulMinMaxRounCast`), which may end in a sum and so be a small product.
POINTWISE = "kgen"
# A product that TensorRT for RTX finishes on the GPU, whose weights may be narrower than what it multiplies.
FUSED = "runtime_fusion"
NARROW = ("int4", "int8", "fp8", "fp4")
# Chains with a product among their steps (`__myl_FcAdd_myl0_51`), and attention as one kernel (`_gemm_mha_v2`).
PRODUCTS = re.compile(r"(?:^__myl_(?:[A-Z][a-z]+)*Fc)|(?:^_gemm_mha)")
# Types that never do: what they compute in says nothing about the layer that they follow or feed.
MOVES = (
    *("pointwise", "elementwise", "reformat", "activation", "scale", "shuffle", "constant", "noop", "reduce", "cast"),
    *("softmax", "pool", "identity", "slice", "concat", "gather", "unary", "select", "quantize", "resize", "copy"),
)


# -- CUDA, through the driver's library ---------------------------------------------------------------------


class Cuda:
    """The few calls of the CUDA driver that are needed: context, memory, stream, events.

    Raises:
        BuildError: there is no driver or no device; nothing of TensorRT has been touched then.
    """

    def __init__(self) -> None:
        self._library = _load_driver()
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, device)
        self.device_name = name.value.decode()
        self.capability = (self._attribute(75, device), self._attribute(76, device))
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self.driver_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self.stream = self._created("cuStreamCreate")

    def _attribute(self, code: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), code, device)
        return value.value

    def _created(self, function: str) -> int:
        handle = ctypes.c_void_p()
        self._call(function, ctypes.byref(handle), 0)
        return handle.value or 0

    def allocate(self, size: int) -> int:
        """Device memory; returns its address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return address.value

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def to_device(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copy an array in the order of the stream; it must live until `synchronize`."""
        source = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, ctypes.c_void_p(self.stream))

    def to_host(self, array: np.ndarray[Any, Any], address: int) -> None:
        """Copy into an array in the order of the stream."""
        target = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, ctypes.c_void_p(self.stream))

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def event(self) -> int:
        """A new event."""
        return self._created("cuEventCreate")

    def record(self, event: int) -> None:
        """Record an event in the stream."""
        self._call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(self.stream))

    def milliseconds(self, start: int, end: int) -> float:
        """Time between two recorded events that the stream has passed."""
        value = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(value), ctypes.c_void_p(start), ctypes.c_void_p(end))
        return float(value.value)

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            hint = "check `nvidia-smi` (on a Jetson: `tegrastats`)" if function == "cuInit" else ""
            raise BuildError(10, f"the CUDA driver refused {function} (error {code})", hint)


def _load_driver() -> ctypes.CDLL:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BuildError(10, "there is no NVIDIA driver on this machine", "run this on the device that the artifact is for")


# -- the libraries, TensorRT and TensorRT for RTX -------------------------------------------------------------


def import_rtx() -> Any:
    """Import the bindings of TensorRT for RTX, which work without a driver as long as nothing is run."""
    try:
        import tensorrt_rtx_bindings
    except ImportError as error:
        hint = "pip install tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings"
        raise BuildError(
            3, f"the bindings of TensorRT for RTX cannot be imported by {sys.executable}: {error}", hint
        ) from error
    return tensorrt_rtx_bindings


def import_library(blueprint: dict[str, Any]) -> Any:
    """The bindings that the artifact is for; the driver has been asked before."""
    return import_rtx() if blueprint.get("library") == RTX else import_tensorrt()


def is_rtx(trt: Any) -> bool:
    """Whether these are the bindings of TensorRT for RTX: versions from 1.x, strongly typed, finished on the GPU."""
    return str(getattr(trt, "__name__", "")).startswith(RTX)


def import_tensorrt() -> Any:
    """Import TensorRT's bindings. Call it after `Cuda()`: without a driver they crash instead of failing."""
    try:
        import tensorrt
    except ImportError as error:
        hint = "on a Jetson: sudo apt install python3-libnvinfer; elsewhere: pip install tensorrt"
        raise BuildError(
            3, f"TensorRT's Python bindings cannot be imported by {sys.executable}: {error}", hint
        ) from error
    return tensorrt


def logger_of(trt: Any, collected: list[Any], listings: Any = None) -> Any:
    """A logger that keeps warnings and errors, to be shown when something fails.

    Args:
        trt: the bindings.
        collected: takes the messages.
        listings: takes the builder's listings of engine layers, which it logs at the lowest severity.
    """

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: Any) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                collected.append(message)
            elif listings is not None and message.startswith(LISTING):
                listings.append(message)

    return Collector()


def profiler_of(trt: Any, add: Callable[[str, float], None]) -> Any:
    """An IProfiler that hands every layer's milliseconds to `add`."""

    class Collector(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            add(layer_name, ms)

    return Collector()


# -- build --------------------------------------------------------------------------------------------------


def version_of(trt: Any) -> tuple[Any, ...]:
    """(major, minor) of the bindings."""
    return tuple(int(part) for part in trt.__version__.split(".")[:2])


def is_strongly_typed(trt: Any, options: Any) -> bool:
    """Whether precision lives in the graph alone: always in 11 and for RTX; in 10 unless the DLA is used."""
    major = version_of(trt)[0]
    return is_rtx(trt) or major >= 11 or (major == 10 and options.dla is None)


def build(trt: Any, blueprint: dict[str, Any], options: Any, listings: Any = None) -> tuple[Any, ...]:
    """Build the engine.

    Args:
        trt: the bindings.
        blueprint: content of `blueprint.json`.
        options: parsed command line.
        listings: a list that takes the builder's listings of engine layers; None where nobody reads them.
    Returns:
        The serialised engine as bytes, and the timing cache as bytes.
    Raises:
        BuildError: the parser or the builder refused; carries what TensorRT logged.
    """
    messages: list[Any] = []
    logger = logger_of(trt, messages, listings)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, options))
    _parse(trt, network, logger, options.artifact / blueprint["model"], messages, dla=options.dla is not None)
    config = builder.create_builder_config()
    _configure(trt, config, blueprint, options)
    if any(isinstance(axis, str) for spec in blueprint["inputs"] for axis in spec["shape"]):
        config.add_optimization_profile(_profile(builder, blueprint, options))
    cache = _timing_cache(config, options.artifact / TIMING_CACHE)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise BuildError(4, f"TensorRT could not build the engine: {_last(messages)}", _build_hint(options))
    return bytes(serialised), bytes(cache.serialize())


def _network_flags(trt: Any, options: Any) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    if is_strongly_typed(trt, options):
        return 1 << int(flags.STRONGLY_TYPED)
    return 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0


def _parse(trt: Any, network: Any, logger: Any, model: Path, messages: list[Any], *, dla: bool) -> None:
    parser = trt.OnnxParser(network, logger)
    if dla and hasattr(getattr(trt, "OnnxParserFlag", None), "ADJUST_FOR_DLA"):
        parser.set_flag(trt.OnnxParserFlag.ADJUST_FOR_DLA)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        listed = "; ".join(f"{error.desc()} (node {error.node()}{_named(error)})" for error in errors[:5])
        raise BuildError(4, f"TensorRT's parser refuses {model.name}: {listed or _last(messages)}")


def _named(error: Any) -> str:
    """Name and operator of the node, which the bindings of 8.6 do not tell."""
    if not hasattr(error, "node_name") or not error.node_name():
        return ""
    return f": {error.node_operator()} {error.node_name()}"


def _configure(trt: Any, config: Any, blueprint: dict[str, Any], options: Any) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.compile_for:
        _set_architectures(trt, config, options.compile_for)
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware != "none":
        config.hardware_compatibility_level = _hardware(trt, options.hardware)
    if options.dla is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla
        if not options.no_gpu_fallback:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if not is_strongly_typed(trt, options):
        half = blueprint.get("between") == "float16"  # of an int8 file, what is between its q/dq nodes
        for name in LEGACY_FLAGS.get("mixed" if half else blueprint["precision"], ()):
            config.set_flag(getattr(trt.BuilderFlag, name))


def _set_architectures(trt: Any, config: Any, names: list[Any]) -> None:
    """Compile for these GPUs, whichever is here."""
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if _capability(trt, name) is None:
            message = f"{RTX} {trt.__version__} compiles for no {name}"
            raise BuildError(2, message, "one of sm_75, 80, 86, 89, 120, 121")
        config.set_compute_capability(_capability(trt, name), index)


def _capability(trt: Any, name: str) -> Any:
    """The library's word for an architecture such as `sm_86`; None where it has no engines for it."""
    return getattr(trt.ComputeCapability, name.upper().replace("_", ""), None)


def _hardware(trt: Any, wanted: str) -> Any:
    level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[wanted], None)
    if level is None:
        raise BuildError(2, f"TensorRT {trt.__version__} has no hardware compatibility {wanted!r}", "use ampere+")
    return level


def _profile(builder: Any, blueprint: dict[str, Any], options: Any) -> Any:
    """One optimization profile over the ranges of all inputs."""
    profile = builder.create_optimization_profile()
    for name, shapes in board.shape_ranges(blueprint, options).items():
        profile.set_shape(name, *shapes)
    return profile


def _timing_cache(config: Any, path: Path) -> Any:
    """The cache of earlier builds: the second build of a model takes seconds instead of minutes."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, False):  # of another device or version: TensorRT will not use it
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _build_hint(options: Any) -> str:
    if options.dla is not None and options.no_gpu_fallback:
        return "some layers do not run on the DLA: drop --no-gpu-fallback"
    return "raise --workspace-mib, or close programs that hold GPU memory"


def _last(messages: list[Any]) -> str:
    return " | ".join(messages[-5:]) or "it logged nothing"


# -- run ----------------------------------------------------------------------------------------------------


class Engine:
    """A deserialised engine with its buffers.

    Args:
        trt, cuda: the bindings and the driver.
        data: the serialised engine.
        blueprint: content of `blueprint.json`.
    """

    def __init__(self, trt: Any, cuda: Any, data: bytes, blueprint: dict[str, Any]) -> None:
        self._trt, self._cuda, self._blueprint = trt, cuda, blueprint
        self._messages: list[Any] = []
        self._logger = logger_of(trt, self._messages)
        self._runtime = trt.Runtime(self._logger)
        if hasattr(self._runtime, "engine_host_code_allowed"):  # version-compatible engines carry host code
            self._runtime.engine_host_code_allowed = True
        before = cuda.free_bytes()
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            hint = "build it again here: engines belong to one GPU model and one TensorRT version"
            raise BuildError(10, f"TensorRT {trt.__version__} refuses the engine: {_last(self._messages)}", hint)
        self._cache: Any = None
        self._settings = self._finished_by(blueprint.get("runtime_cache"))
        self._context = self._engine.create_execution_context(*self._settings)
        if self._context is None:
            raise BuildError(10, f"no memory for an execution context: {_last(self._messages)}")
        self.device_memory_bytes = max(0, before - cuda.free_bytes())
        self._buffers: dict[str, Any] = {}

    def _finished_by(self, kept: Any) -> tuple[Any, ...]:
        """TensorRT for RTX finishes its kernels on the GPU: the configuration that keeps them; nothing for others."""
        if not is_rtx(self._trt):
            return ()
        settings = self._engine.create_runtime_config()
        self._cache = settings.create_runtime_cache()
        if kept and not self._cache.deserialize(kept):
            sys.stderr.write("note: the runtime cache is of another GPU or version; kernels are made again\n")
        settings.set_runtime_cache(self._cache)
        return (settings,)

    def finish(self, shapes: dict[str, Any]) -> None:
        """Run once on zeros of the usual shapes, so that every kernel is made before the cache is kept."""
        wanted = {spec["name"]: spec["dtype"] for spec in self._blueprint["inputs"]}
        self.run({name: np.zeros(shape, wanted[name]) for name, shape in shapes.items()})

    def runtime_cache(self) -> bytes:
        """The kernels that were finished on this GPU so far; empty where the library keeps none."""
        return b"" if self._cache is None else bytes(self._cache.serialize())

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Run once, from host arrays to host arrays."""
        staged = self._bind(feeds)
        self._copy_in(staged)
        self._execute()
        results = self._copy_out()
        self._cuda.synchronize()
        return {name: self._public(name, array) for name, array in results.items()}

    def profile(self, feeds: dict[str, Any], runs: int) -> dict[str, Any]:
        """Time runs with CUDA events (with and without the copies), then layers through IProfiler."""
        for _ in range(WARM_UP):
            self.run(feeds)
        staged = self._bind(feeds)
        events = [self._cuda.event() for _ in range(4)]
        whole, compute = [], []
        for _ in range(runs):
            self._cuda.record(events[0])
            self._copy_in(staged)
            self._cuda.record(events[1])
            self._execute()
            self._cuda.record(events[2])
            self._copy_out()
            self._cuda.record(events[3])
            self._cuda.synchronize()
            whole.append(self._cuda.milliseconds(events[0], events[3]))
            compute.append(self._cuda.milliseconds(events[1], events[2]))
        kernels = board.percentiles(compute)
        return {
            "latency_ms": board.percentiles(whole),
            "run_ms": whole,
            "notes": [
                f"measured on {self._cuda.device_name} ({arch_of(self._cuda)})",
                f"CUDA events, with copies; kernels alone: p50 {kernels['p50']:.3f} ms, p99 {kernels['p99']:.3f} ms",
                "memory is what the engine and its context took on the GPU",
            ],
            "warm_up": WARM_UP,
            "runs": runs,
            "throughput_per_s": self._throughput(staged, runs),
            "device_memory_bytes": self.device_memory_bytes,
            "layers": self._layer_times(feeds, min(runs, 20)),
        }

    def layers(self, shapes: dict[str, Any]) -> list[Any]:
        """What the engine inspector says of every layer: ONNX nodes, precision, and DLA or GPU.

        Args:
            shapes: the shapes of the inputs, by name; of dynamic ones the inspector says nothing before they are known.
        """
        for name in self._names(self._trt.TensorIOMode.INPUT):
            self._context.set_input_shape(name, shapes[name])
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        listed = json.loads(text).get("Layers", [])
        return [describe_layer(layer) for layer in listed if isinstance(layer, dict)]

    def _names(self, mode: Any) -> list[Any]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def _bind(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Give the context shapes and addresses; returns the inputs in the engine's own types."""
        staged = {}
        for name in self._names(self._trt.TensorIOMode.INPUT):
            array = np.ascontiguousarray(feeds[name], dtype=self._dtype(name))
            if not self._context.set_input_shape(name, array.shape):
                raise BuildError(2, f"shape {array.shape} of input {name!r} is outside the engine's profile")
            self._context.set_tensor_address(name, self._buffer(name, array.nbytes))
            staged[name] = array
        self._results = {}
        for name in self._names(self._trt.TensorIOMode.OUTPUT):
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise BuildError(4, f"the shape of output {name!r} depends on data, which is not supported")
            result = np.empty(shape, self._dtype(name))
            self._context.set_tensor_address(name, self._buffer(name, result.nbytes))
            self._results[name] = result
        return staged

    def _copy_in(self, staged: dict[str, Any]) -> None:
        for name, array in staged.items():
            self._cuda.to_device(self._buffers[name][0], array)

    def _copy_out(self) -> dict[str, Any]:
        for name, array in self._results.items():
            self._cuda.to_host(array, self._buffers[name][0])
        return self._results

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise BuildError(10, f"the engine failed to run: {_last(self._messages)}")

    def _throughput(self, staged: dict[str, Any], runs: int) -> float:
        self._copy_in(staged)
        start, end = self._cuda.event(), self._cuda.event()
        self._cuda.record(start)
        for _ in range(runs):
            self._execute()
        self._cuda.record(end)
        self._cuda.synchronize()
        rows = next(iter(staged.values())).shape[:1]
        return runs * int(rows[0] if rows else 1) / float(self._cuda.milliseconds(start, end) / 1e3)

    def _layer_times(self, feeds: dict[str, Any], runs: int) -> dict[str, Any]:
        """Median of every layer, in microseconds: one slow run in ten is no slower layer."""
        turns: list[dict[str, float]] = []

        def add(layer: str, milliseconds: float) -> None:  # of one run, for some layers more than once
            turns[-1][layer] = turns[-1].get(layer, 0.0) + milliseconds * 1e3

        ordinary, self._context = self._context, self._engine.create_execution_context(*self._settings)
        try:
            if self._context is not None:  # a second context takes memory, which a small board may not have
                self._context.profiler = profiler_of(self._trt, add)
                for _ in range(runs):
                    turns.append({})
                    self.run(feeds)
        finally:
            self._context = ordinary
        layers = dict.fromkeys(layer for turn in turns for layer in turn)
        return {layer: float(np.median([turn.get(layer, 0.0) for turn in turns])) for layer in layers}

    def _buffer(self, name: str, size: int) -> int:
        address: int
        address, capacity = self._buffers.get(name, (0, -1))
        if capacity < size:
            if capacity >= 0:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        return address

    def _dtype(self, name: str) -> np.dtype[Any]:
        types = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "INT32": "i4", "BOOL": "?", "INT64": "i8", "UINT8": "u1"}
        return np.dtype(types[self._engine.get_tensor_dtype(name).name])

    def _public(self, name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        wanted = {spec["name"]: spec["dtype"] for spec in self._blueprint["outputs"]}[name]
        return array.astype(wanted)


# -- what the layers of an engine say -------------------------------------------------------------------------


def describe_layer(layer: dict[str, Any]) -> dict[str, Any]:
    """Shorten one layer of the inspector's JSON.

    Returns:
        name, type, the ONNX nodes it was made of, the narrowest type among its inputs (`unknown` where none is named;
        of a fused pointwise kernel the widest float, for it widens what it reads before it computes),
        its role (`multiplies`, `moves` or `other`), and `dla` or `gpu`. A name of `{ForeignNode[...]}` says nothing of
        the device: Myelin, which runs on the GPU, has such names too.
    """
    kind = str(layer.get("LayerType", ""))
    return {
        "name": str(layer.get("Name", "")),
        "type": kind,
        "nodes": re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", ""))),
        "precision": _computes_in(layer, kind),
        "role": "multiplies" if PRODUCTS.match(str(layer.get("Name", ""))) else role_of(kind),
        "device": "dla" if kind.upper().startswith("DLA") else "gpu",
    }


def _computes_in(layer: dict[str, Any], kind: str) -> str:
    read, written, held = (_formats(layer, side) for side in ("Inputs", "Outputs", "Constants"))
    weights = narrowest(held) if kind == FUSED and narrowest(read) not in NARROW and narrowest(held) in NARROW else ""
    if kind in (POINTWISE, FUSED) and not weights:
        types = {narrowest([text]) for text in (read if kind == FUSED else read + written + held)}
        floats = [name for name in ("float64", "float32", "bfloat16", "float16") if name in types]
        if floats:  # a chain widens what it reads; a product in it has the type of its two operands
            return floats[-1] if kind == FUSED else floats[0]
    if weights:
        return weights + "-weights"
    return narrowest(read) or narrowest(written) or "unknown"


def _formats(layer: dict[str, Any], side: str) -> list[Any]:
    tensors = [tensor for tensor in layer.get(side) or [] if isinstance(tensor, dict)]
    return [str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "") for tensor in tensors]


def narrowest(formats: list[Any]) -> str:
    """The narrowest type that the formats name, as deploykit calls it; "" where they name none."""
    words = {word for text in formats for word in re.findall("[a-z0-9]+", text.lower())}
    return next((precision for word, precision in PRECISIONS.items() if word in words), "")


def role_of(kind: str) -> str:
    """Whether layers of this type multiply and accumulate, only move or map values, or might do either (`kgen`)."""
    lower = kind.lower()
    if lower == "conv" or any(part in lower for part in MULTIPLIES):
        return "multiplies"
    return "moves" if any(part in lower for part in MOVES) else "other"


# -- the program --------------------------------------------------------------------------------------------


def probe(options: Any) -> dict[str, Any]:
    """What is here: driver, device, TensorRT. Never crashes: the driver is asked first."""
    cuda = Cuda()
    try:
        blueprint = board.read_blueprint(options.artifact)
    except BuildError:  # the program alone, outside an artifact
        blueprint = {}
    trt = import_library(blueprint)
    return {**facts(trt, cuda), "python": sys.executable}


def arch_of(cuda: Any) -> str:
    """The GPU architecture as CUDA spells it, such as `sm_87`."""
    major, minor = cuda.capability
    return f"sm_{major}{minor}"


def facts(trt: Any, cuda: Any) -> dict[str, Any]:
    """The machine and the versions that a figure was taken with."""
    library = RTX if is_rtx(trt) else "tensorrt"
    return {
        "runtime": library,
        "device": cuda.device_name,
        "arch": arch_of(cuda),
        "cuda_driver": cuda.driver_version,
        library: trt.__version__,
    }


def main(options: Any) -> Any:
    """Do what the command line asks; returns the report."""
    if options.probe:
        return probe(options)
    if options.serve:
        board.serve(lambda: open_engine(options.artifact))
        return None
    blueprint = board.read_blueprint(options.artifact)
    out = board.folder_for_output(options)
    if options.compile_for:
        return compile_only(blueprint, options, out)
    cuda = Cuda()
    trt = import_library(blueprint)
    check_device(blueprint, cuda, options, trt)
    check_model(options.artifact / blueprint["model"])
    golden = board.golden_of(options, blueprint)
    shapes = {name: usual for name, (_, usual, _) in board.shape_ranges(blueprint, options).items()}
    start = time.time()
    if is_rtx(trt):
        options.compile_for = [arch_of(cuda)]
    compiled = compiled_before(blueprint, options, trt)
    engine_bytes, cache = (compiled, b"") if compiled else build(trt, blueprint, options)
    report = {"build_seconds": round(time.time() - start, 1), **facts(trt, cuda)}
    if not is_rtx(trt):  # it has the calls, and stores nothing
        keep_cache(cache, (options.artifact, out))
    report["engine_sha256"] = hashlib.sha256(engine_bytes).hexdigest()
    engine = Engine(trt, cuda, engine_bytes, blueprint)
    report["layers"] = engine.layers(shapes)
    report["layers_source"] = "TensorRT's engine inspector: narrowest type among a layer's inputs"
    report.update(examine(engine, blueprint, options.runs, golden))
    if is_rtx(trt):
        engine.finish(shapes)
        board.write_whole(out / RUNTIME_CACHE, engine.runtime_cache())
    board.write_whole(out / ENGINE, engine_bytes)
    board.write_whole(out / LAYERS, json.dumps(report["layers"], indent=1).encode())
    board.write_whole(out / REPORT, json.dumps(report, indent=1).encode())
    return report


def compile_only(blueprint: dict[str, Any], options: Any, out: Path) -> dict[str, Any]:
    """Compile for the architectures that were asked for, without a GPU; nothing is run.

    Returns:
        The version, seconds, and the builder's listings of engine layers, one for each architecture or one for all.
    """
    trt = import_rtx()
    check_model(options.artifact / blueprint["model"])
    listings: list[Any] = []
    start = time.time()
    engine, _ = build(trt, blueprint, options, listings)
    board.write_whole(out / ENGINE, engine)
    return {RTX: trt.__version__, "listings": listings, "build_seconds": round(time.time() - start, 2)}


def compiled_before(blueprint: dict[str, Any], options: Any, trt: Any) -> Any:
    """The engine that the export compiled; None where library, GPU or options of the build are others than its."""
    is_here = blueprint.get("engine") == ENGINE and blueprint.get("engine_version") == trt.__version__
    if not is_here or not set(options.compile_for) <= set(blueprint.get("compute_capabilities", ())):
        return None
    defaults = parse([], blueprint.get("options", {}))
    building = ("workspace_mib", "optimization_level", "hardware", "version_compatible")
    if any(getattr(options, key) != getattr(defaults, key) for key in building):
        return None
    if board.shape_ranges(blueprint, options) != board.shape_ranges(blueprint, defaults):
        return None
    check_model(options.artifact / ENGINE)
    return (options.artifact / ENGINE).read_bytes()


def examine(engine: Any, blueprint: dict[str, Any], runs: int, golden: tuple[Any, ...]) -> dict[str, Any]:
    """Run the golden data and, where it is reproduced, measure the speed; both as parts of the report."""
    inputs, outputs = golden
    checked = board.check_golden(engine, inputs, outputs, blueprint)
    wanted = runs and inputs and not checked["failures"]
    return {"golden": checked, **({"profile": engine.profile(inputs[0], runs)} if wanted else {})}


def keep_cache(cache: bytes, folders: tuple[Any, ...]) -> None:
    """Keep the timing cache for the next build: with the artifact or, where that can only be read, with the engine."""
    for folder in folders:
        try:
            board.write_whole(folder / TIMING_CACHE, cache)
            return
        except BuildError as error:
            sys.stderr.write(f"note: the timing cache is not kept: {error}\n")


def open_engine(folder: Path) -> Engine:
    """The engine that was built into `folder`.

    Raises:
        BuildError: code 9; there is none.
    """
    blueprint = board.read_blueprint(folder)
    if not (folder / ENGINE).is_file():
        raise BuildError(9, f"there is no {ENGINE} in {folder}", "build it first: deploykit build, or this program")
    cuda, kept = Cuda(), folder / RUNTIME_CACHE
    blueprint = {**blueprint, "runtime_cache": kept.read_bytes() if kept.is_file() else b""}
    return Engine(import_library(blueprint), cuda, (folder / ENGINE).read_bytes(), blueprint)


def check_device(blueprint: dict[str, Any], cuda: Any, options: Any, trt: Any) -> None:
    """Refuse to build for another device than the artifact's, unless told to and the library can."""
    here = arch_of(cuda)
    if is_rtx(trt) and _capability(trt, here) is None:
        message = f"this is {cuda.device_name} ({here}), and TensorRT for RTX has no engines for {here}"
        raise BuildError(10, message, "export the model for this GPU through TensorRT, such as h200:tensorrt")
    archs = blueprint.get("compute_capabilities") or [blueprint["arch"]]
    if here not in archs and not options.any_device:
        message = f"the artifact is for {blueprint['device']} ({', '.join(archs)}); this is {cuda.device_name} ({here})"
        # `deploykit build` has no such option, and shows this hint too: hence the whole command.
        command = f"python3 {Path(__file__).name} --any-device"
        raise BuildError(10, message, f"build it on that device, or here with `{command}` in the artifact's folder")


def check_model(path: Path) -> None:
    """Tell a file that is not there from one that TensorRT refuses."""
    if not path.is_file():
        raise BuildError(9, f"{path.name} is missing beside this program", "copy the artifact again")


def hardware_name(text: str) -> str:
    """A type for argparse, which holds only what is typed against `choices`, and not the blueprint's default."""
    if text not in HARDWARE:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(HARDWARE)}")
    return text


def parse(arguments: list[Any], blueprint_options: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line; defaults are the options that the artifact was exported with."""
    command = board.parser_of((__doc__ or "").splitlines()[0])
    known = {name: None if value is None else str(value) for name, value in blueprint_options.items()}  # as if typed
    mib, level = board.whole_number(1, 1 << 30), board.whole_number(0, 5)
    command.add_argument("--workspace-mib", type=mib, default=known.get("workspace_mib"))
    command.add_argument("--optimization-level", type=level, default=known.get("optimization_level"))
    command.add_argument("--dla", type=board.whole_number(0, 15), metavar="CORE", default=known.get("dla"))
    command.add_argument(
        "--no-gpu-fallback", action="store_true", default=blueprint_options.get("no_gpu_fallback", False)
    )
    versions = blueprint_options.get("version_compatible", False)
    command.add_argument("--version-compatible", action="store_true", default=versions)
    hardware = known.get("hardware") or "none"
    command.add_argument("--hardware", type=hardware_name, metavar="|".join(HARDWARE), default=hardware)
    board.add_shape_options(command, blueprint_options)
    command.add_argument("--compile-for", nargs="+", metavar="ARCH", default=[], help="sm_86, ...: without a GPU")
    command.add_argument("--any-device", action="store_true", help="build although the GPU is another one")
    return command.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(board.run_cli(main, parse))
