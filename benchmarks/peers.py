"""The peers: what a user does today without deploykit, each by its vendor's documented route."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import quiet

Feeds = dict[str, np.ndarray]
Runner = Callable[[Feeds], list[np.ndarray]]


def torch_onnx(model: Any, example: Sequence[Any], names: Sequence[str], path: Path, *, dynamo: bool = True) -> Path:
    """`torch.onnx.export`; stale inner shapes are removed, because ORT's quantizers trip over them.

    Args:
        dynamo: the exporter; weights of recurrent layers are constants, which quantizers want, of the older one alone.
    """
    import onnx
    import torch

    with quiet(), torch.no_grad():
        torch.onnx.export(model, tuple(example), str(path), dynamo=dynamo, verbose=False, input_names=list(names))
    proto = onnx.load(str(path))
    del proto.graph.value_info[:]
    onnx.save(proto, str(path))
    path.with_name(path.name + ".data").unlink(missing_ok=True)
    return path


def ort_static(source: Path, path: Path, batches: Iterable[Feeds], method: str = "MinMax") -> Path:
    """`onnxruntime.quantization.quantize_static`, QDQ, uint8 activations, int8 per-channel weights."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Feeds | None:
            return next(self._batches, None)

    with quiet():
        q.quantize_static(
            str(source),
            str(path),
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod[method],
        )
    return path


def ort_dynamic(source: Path, path: Path) -> Path:
    """`onnxruntime.quantization.quantize_dynamic`, int8 per-channel weights."""
    from onnxruntime import quantization as q

    with quiet():
        q.quantize_dynamic(str(source), str(path), per_channel=True, weight_type=q.QuantType.QInt8)
    return path


def nncf_openvino(source: Path, path: Path, batches: Sequence[Feeds], *, transformer: bool = False) -> Path:
    """`nncf.quantize` on the OpenVINO model, its transformer preset where the model is one."""
    with quiet():
        import nncf
        import openvino

        extra = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
        model = openvino.convert_model(str(source))
        data = nncf.Dataset(list(batches))
        openvino.save_model(nncf.quantize(model, data, subset_size=len(batches), **extra), str(path))
    return path


def ort_runner(path: Path, threads: int) -> Runner:
    """A plain ONNX Runtime session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def openvino_runner(path: Path, threads: int, precision: str = "") -> Runner:
    """A plain OpenVINO request with the plugin's defaults (which may compute leftovers in bf16).

    Args:
        precision: what floats are to be computed in instead: `bf16`.
    """
    import openvino

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    config |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    compiled = openvino.Core().compile_model(str(path), "CPU", config)
    request = compiled.create_infer_request()
    ports = compiled.outputs

    def run(feeds: Feeds) -> list[np.ndarray]:
        results = request.infer(feeds)
        return [results[port] for port in ports]

    return run
