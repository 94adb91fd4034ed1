"""ONNX Runtime on the CPU: sessions with stated threads, the graph it really runs, time per operator.

Needs neither PyTorch nor the onnx package: this is what a board imports. A provider that was asked for and is not
used is an error, never a silent fall-back.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import ConversionError, DeviceError
from deploykit.contract.optional import require
from deploykit.contract.session import OpTime

if TYPE_CHECKING:
    import onnxruntime

    from deploykit.contract.tensors import Feeds

CPU = "CPUExecutionProvider"
_FATAL = 4  # ONNX Runtime's log level: what matters arrives as exceptions
_KERNEL = "_kernel_time"
EXACT = ("session.x64quantprecision", "1")
"""Session option: 8-bit products in the form that cannot saturate. It wants a weight and a zero point for each product
(`own_weights.py`)."""
# It quantises the weights of float layers that lie between int8 ones: what was kept in float must stay float.
_DISABLED = ("WeightBiasQuantization",)


def inference_session(
    model: bytes | Path | str,
    *,
    threads: int,
    providers: Sequence[str] = (CPU,),
    optimised: Path | None = None,
    profile: Path | None = None,
    exact: bool = False,
) -> onnxruntime.InferenceSession:
    """Open a model with all graph optimisations.

    Args:
        model: serialised model, or the path of a file (needed where weights are in external files).
        threads: for one operator; operators run one after another.
        providers: in order of preference; every one must really be in use.
        optimised: where to write the graph after optimisation.
        profile: prefix of the profile that `end_profiling` writes.
        exact: sums of uint8 x int8 products are taken in a form that cannot saturate, for CPUs without VNNI (see
            `vnni.needs_exact`); slower there than weights of 7 bits, and three times slower on a CPU with AMX.

    Raises:
        ConversionError: ONNX Runtime refuses the model; its message names the node.
        DeviceError: a provider is not in use, for lack of its libraries or of the device.
    """
    ort = require("onnxruntime", extra="onnxruntime-runtime", purpose="run ONNX files")
    _require_in_use(providers, ort.get_available_providers())  # what is listed may still not load: asked again below
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _FATAL
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if exact:
        options.add_session_config_entry(*EXACT)
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = ort.InferenceSession(source, options, providers=list(providers), disabled_optimizers=list(_DISABLED))
    except Exception as error:
        raise ConversionError(f"ONNX Runtime refuses the model: {error}") from error
    _require_in_use(providers, session.get_providers())
    return session


def _require_in_use(wanted: Sequence[str], used: Sequence[str]) -> None:
    absent = [name for name in wanted if name not in used]
    if absent:
        raise DeviceError(
            f"ONNX Runtime does not use {', '.join(absent)}; it runs on {', '.join(used)}",
            hint="install the provider's libraries and driver, or choose another target",
        )


def optimised_model(model: bytes | Path | str, *, threads: int = 1) -> bytes:
    """The graph that ONNX Runtime runs on this machine, serialised: what fused, and what stayed float, shows there."""
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        path = Path(folder) / "optimised.onnx"
        inference_session(model, threads=threads, optimised=path)
        return path.read_bytes()


def op_times(
    model: bytes | Path | str,
    feeds: Feeds,
    *,
    threads: int,
    runs: int,
    module_paths: Mapping[str, str],
    exact: bool = False,
) -> tuple[OpTime, ...]:
    """Median time per operator over `runs` runs after one warm-up, slowest first.

    Args:
        module_paths: captured node name to module path; names that ONNX Runtime changed in fusing are traced back.
        exact: see `inference_session`.
    """
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        session = inference_session(model, threads=threads, profile=Path(folder) / "profile", exact=exact)
        for _ in range(runs + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, op_type, microseconds in _kernels(events):
        spent[name, op_type].append(microseconds)
    times = []
    for (name, op_type), each in spent.items():
        captured = captured_name(name, module_paths)
        path, typical = module_paths.get(captured, ""), median(_by_run(each, runs + 1)[1:] or each)
        times.append(OpTime(name=captured or name, op=op_type, module_path=path, median_us=typical))
    return tuple(sorted(times, key=lambda time: -time.median_us))


def _by_run(calls: Sequence[float], runs: int) -> list[float]:
    """Microseconds of every run, from those of every call in order; a node may be called several times in a run."""
    each = len(calls) // runs or 1
    return [sum(calls[start : start + each]) for start in range(0, len(calls), each)] or [0.0]


def _kernels(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """(node, operator, microseconds) of every kernel call in a profile."""
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            yield event["name"].removesuffix(_KERNEL), event["args"]["op_name"], float(event["dur"])


def captured_name(name: str, known: Collection[str]) -> str:
    """The captured node behind a node of ONNX Runtime's optimised graph; "" where there is none.

    Fusions add to names: `conv2d_3_token_15`, `linear_1.matmul_0/MatMulAddFusion`, `linear.matmul_0_quant`,
    `fused linear`; float16 that runs as float32 gives `InsertedPrecisionFreeCast_conv2d_nchwc`.
    """
    stem = name.removeprefix("fused ").removeprefix("InsertedPrecisionFreeCast_").partition("/")[0]
    if stem in known:
        return stem
    stem = stem.partition(".")[0]
    while stem and stem not in known:
        stem = stem.rpartition("_")[0]
    return stem
