"""Single layers: generated TVM kernels against ONNX Runtime's operators on this machine, one thread.

    OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 PYTHONPATH=.:calibration:targets python benchmarks/tvm_kernels.py [result.json]

`KERNELS_ISA` names another instruction set of `kernels/isa.py` than `avx512_vnni`.

Process time, minima of interleaved turns: on a busy machine the ratio of two minima is steadier than either.
Both sides are given NHWC data for int8. ONNX Runtime's float32 convolution has NCHW data, with and without its own
blocked layout, whichever is faster. Padding is counted on both sides.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tvm
from onnx import TensorProto, helper, numpy_helper

from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import ConvShape, pack_conv, pack_conv_constants, plan_conv
from deploykit_targets.tvm.kernels.depthwise import depthwise, pack_depthwise
from deploykit_targets.tvm.kernels.elementwise import add, add_quantized
from deploykit_targets.tvm.kernels.expressions import Affine
from deploykit_targets.tvm.kernels.isa import Isa, isa
from deploykit_targets.tvm.kernels.pad import pad

TURNS, SLICE_S = 25, 0.01
IN, OUT, WEIGHT_SCALE = Affine(0.02, 128), Affine(0.15, 100), 0.01


@dataclass(frozen=True)
class Layer:
    name: str
    size: int
    channels: int
    columns: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def shape(self) -> ConvShape:
        side = self.size + 2 * self.padding
        pair = (self.kernel, self.kernel), (self.stride, self.stride)
        return ConvShape(1, side, side, self.channels, self.columns, *pair, groups=self.groups)

    @property
    def macs(self) -> int:
        return math.prod(self.shape.output) * self.columns * self.kernel**2 * self.channels // self.groups


LAYERS = [
    Layer("56x56 64->256 1x1", 56, 64, 256),
    Layer("14x14 1024->256 1x1", 14, 1024, 256),
    Layer("7x7 2048->512 1x1", 7, 2048, 512),
    Layer("14x14 256 3x3", 14, 256, 256, 3),
    Layer("224x224 stem 7x7 s2", 224, 3, 64, 7, 2),
    Layer("112x112 32->16 1x1", 112, 32, 16),
    Layer("dense 2048->1008", 1, 2048, 1008),
    Layer("depthwise 112x112x32 3x3", 112, 32, 32, 3, 1, 32),
    Layer("depthwise 56x56x144 3x3 s2", 56, 144, 144, 3, 2, 144),
    Layer("depthwise 14x14x384 3x3", 14, 384, 384, 3, 1, 384),
    Layer("depthwise 7x7x960 3x3", 7, 960, 960, 3, 1, 960),
]
Step = Callable[[], Any]


def ours(
    layer: Layer, precision: str, target: Isa, x: np.ndarray, w: np.ndarray
) -> tuple[Step, Callable[[], np.ndarray]]:
    """The layer with its padding: a call, and what it computed."""
    dot, shape = (target.int8, target.float32)[precision == "float32"], layer.shape
    bias, scale = np.zeros(layer.columns, np.float32), None
    if dot.quantized:
        sums = w.reshape(layer.columns, -1).sum(1, dtype=np.int64)
        ratio = IN.scale * WEIGHT_SCALE / OUT.scale
        scale = np.full(layer.columns, ratio, np.float32)
        bias = (OUT.zero_point - IN.zero_point * sums * ratio).astype(np.float32)
    if layer.groups > 1:
        kernel, weights, slack = depthwise(shape, dot), pack_depthwise(w, dot), 0
        constants = bias if scale is None else np.concatenate([scale, bias])
    else:
        plan = plan_conv(shape, dot)
        kernel, weights, constants = conv(plan), pack_conv(plan, w), pack_conv_constants(plan, bias, scale)
        slack = plan.input_elements - shape.height * shape.width * shape.channels
    p, zero = layer.padding, IN.zero_point if dot.quantized else 0
    border = pad((1, layer.size, layer.size, layer.channels), (p, p, p, p), dot.activation, value=zero, slack=slack)
    functions = {"layer": kernel, "border": border}
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    library = tvm.compile(module, target=tvm.target.Target(dict(target.target)))
    padded = np.zeros(shape.height * shape.width * shape.channels + slack, dot.activation)
    result = np.zeros(math.prod(shape.output) * layer.columns, dot.activation)
    a, b, c, d, e = (tvm.runtime.tensor(t) for t in (x.ravel(), padded, weights, constants, result))
    run, fill = library["layer"], library["border"]
    if p == 0 and slack == 0:
        return (lambda: run(a, c, d, e)), e.numpy
    return (lambda: (fill(a, b), run(b, c, d, e))), e.numpy


def session(
    nodes: list[Any], constants: dict[str, np.ndarray], x: dict[str, np.ndarray], shape: list[int], level: Any
) -> Any:
    """ONNX Runtime on one thread, inputs and output bound."""
    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    kind = types[str(next(iter(x.values())).dtype)]
    inputs = [helper.make_tensor_value_info(name, kind, value.shape) for name, value in x.items()]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "layer", inputs, [helper.make_tensor_value_info("y", kind, shape)], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = made.io_binding()
    for name, value in x.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
    binding.bind_ortvalue_output(
        "y", ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, str(next(iter(x.values())).dtype)))
    )
    return made, binding


def scalars(**values: Affine) -> dict[str, np.ndarray]:
    pairs = [(f"{name}_scale", np.float32(a.scale)) for name, a in values.items()]
    return dict(pairs + [(f"{name}_zero", np.uint8(a.zero_point)) for name, a in values.items()])  # type: ignore[arg-type]


def theirs(layer: Layer, precision: str, x: np.ndarray, w: np.ndarray, level: Any) -> Any:
    p = layer.padding
    fields = {"pads": [p] * 4, "strides": [layer.stride] * 2, "group": layer.groups, "kernel_shape": [layer.kernel] * 2}
    height, width = layer.shape.output
    if precision == "float32":
        node = helper.make_node("Conv", ["x", "w"], ["y"], **fields)
        nchw = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return session([node], {"w": w}, {"x": nchw}, [1, layer.columns, height, width], level)
    names = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"]
    node = helper.make_node("QLinearConv", names, ["y"], domain="com.microsoft", channels_last=1, **fields)
    constants = {"w": w, "w_scale": np.float32(WEIGHT_SCALE), "w_zero": np.int8(0), **scalars(x=IN, y=OUT)}
    return session([node], constants, {"x": x}, [1, height, width, layer.columns], level)


def race(steps: list[Step]) -> list[float]:
    """Seconds of each, minima of interleaved turns of process time."""
    best = []
    counts = []
    for step in steps:
        step()
        begin = time.process_time()
        step()
        counts.append(max(1, int(SLICE_S / max(time.process_time() - begin, 1e-6))))
        best.append(math.inf)
    for _ in range(TURNS):
        for i, (step, count) in enumerate(zip(steps, counts, strict=True)):
            begin = time.process_time()
            for _ in range(count):
                step()
            best[i] = min(best[i], (time.process_time() - begin) / count)
    return best


def measure(layer: Layer, precision: str, target: Isa) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    size, weights = (1, layer.size, layer.size, layer.channels), (layer.columns, layer.channels // layer.groups)
    kernel = (layer.kernel, layer.kernel)
    if precision == "float32":
        x, w = rng.normal(size=size).astype(np.float32), rng.normal(size=(*weights, *kernel)).astype(np.float32)
    else:
        x, w = rng.integers(0, 256, size).astype(np.uint8), rng.integers(-127, 128, (*weights, *kernel)).astype(np.int8)
    step, computed = ours(layer, precision, target, x, w)
    levels = ort.GraphOptimizationLevel
    wanted = [levels.ORT_ENABLE_ALL, levels.ORT_ENABLE_EXTENDED][: 2 if precision == "float32" else 1]
    rivals = [theirs(layer, precision, x, w, level) for level in wanted]
    seconds, *others = race([step, *(lambda m=made, b=binding: m.run_with_iobinding(b) for made, binding in rivals)])
    reference = rivals[0][1].copy_outputs_to_cpu()[0]
    if precision == "float32":
        reference = reference.transpose(0, 2, 3, 1)
    difference = np.abs(computed().astype(np.float64) - reference.ravel().astype(np.float64)).max()
    return row(layer.name, precision, seconds, min(others), float(difference), layer.macs)


def measure_add(precision: str, target: Isa) -> dict[str, Any]:
    length, rng = 56 * 56 * 256, np.random.default_rng(0)
    second = Affine(0.03, 120)
    if precision == "float32":
        kernel, dtype = add(length), "float32"
        a, b = (rng.normal(size=length).astype(np.float32) for _ in range(2))
        node = helper.make_node("Add", ["a", "b"], ["y"])
        constants: dict[str, np.ndarray] = {}
    else:
        kernel, dtype = add_quantized(length, "uint8", (IN, second), OUT), "uint8"
        a, b = (rng.integers(0, 256, length).astype(np.uint8) for _ in range(2))
        names = ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "y_scale", "y_zero"]
        node = helper.make_node("QLinearAdd", names, ["y"], domain="com.microsoft")
        constants = scalars(a=IN, b=second, y=OUT)
    made, binding = session([node], constants, {"a": a, "b": b}, [length], ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    module = tvm.IRModule({"layer": kernel.with_attr("global_symbol", "layer")})
    run = tvm.compile(module, target=tvm.target.Target(dict(target.target)))["layer"]
    first, other, result = (tvm.runtime.tensor(t) for t in (a, b, np.zeros(length, dtype)))
    seconds, rival = race([lambda: run(first, other, result), lambda: made.run_with_iobinding(binding)])
    reference = binding.copy_outputs_to_cpu()[0].astype(np.float64)
    return row("add 56x56x256", precision, seconds, rival, float(np.abs(result.numpy() - reference).max()), length)


def row(name: str, precision: str, seconds: float, rival: float, difference: float, operations: int) -> dict[str, Any]:
    return {
        "layer": name,
        "precision": precision,
        "onnxruntime_ms": rival * 1e3,
        "kernel_ms": seconds * 1e3,
        "onnxruntime_gmac_per_s": operations / rival / 1e9,
        "kernel_gmac_per_s": operations / seconds / 1e9,
        "onnxruntime_time_over_kernel_time": rival / seconds,
        "largest_difference": difference,
    }


def main() -> None:
    os.environ["TVM_NUM_THREADS"] = "1"
    target, rows = isa(os.environ.get("KERNELS_ISA", "avx512_vnni")), []
    print("| layer | precision | ORT GMAC/s | kernel GMAC/s | ORT time / kernel time | largest difference |")
    print("|---|---|---|---|---|---|")
    for precision in ("int8", "float32"):
        results = [measure(layer, precision, target) for layer in LAYERS] + [measure_add(precision, target)]
        for result in results:
            speeds = f"{result['onnxruntime_gmac_per_s']:.1f} | {result['kernel_gmac_per_s']:.1f}"
            ratio = f"{result['onnxruntime_time_over_kernel_time']:.2f} | {result['largest_difference']:.2g}"
            print(f"| {result['layer']} | {precision} | {speeds} | {ratio} |", flush=True)
        rows += results
    if len(sys.argv) > 1:
        versions = {"tvm": tvm.__version__, "onnxruntime": ort.__version__, "onnx": onnx.__version__}
        record = {
            "isa": target.name,
            "threads": 1,
            "load_average": os.getloadavg()[0],
            "versions": versions,
            "rows": rows,
        }
        Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
