"""int8 for TensorRT: our ONNX file against those of nvidia-modelopt and ONNX Runtime, by SQNR and by the lint.

    python -m venv modelopt && modelopt/bin/pip install torch "nvidia-modelopt[onnx]"
    python benchmarks/tensorrt_peers.py --modelopt modelopt/bin/python [--models digits_mobilenet digits_resnet ...]

modelopt wants other versions of onnx and onnxruntime than we do, so it runs in an environment of its own. Every file is
judged by the same runtime (ONNX Runtime on the CPU, q/dq nodes computed as written) on samples that none has seen in
calibration; nothing here says how fast a file is on a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import peers
from harness import quiet, report, scratch, threads
from quality import CASES, Case, feeds_of, judge

import deploykit
from deploykit_targets._onnx.lint import lint, load_rules
from deploykit_targets._onnx.reference import ReferenceSession

MODELS = ("digits_mobilenet", "digits_resnet", "resnet18", "vit")
# What modelopt is asked for: its `max` method with float32 between, the setting that is comparable with ours.
MODELOPT = """
import json, sys
import numpy as np
from modelopt.onnx.quantization import quantize
source, target, data, method, rest = sys.argv[1:]
quantize(source, quantize_mode="int8", calibration_data=dict(np.load(data)), calibration_method=method,
         calibration_eps=["cpu"], high_precision_dtype=rest, output_path=target)
import modelopt
print(json.dumps({"version": modelopt.__version__}))
"""


def ours(case: Case, folder: Path, method: str) -> Path:
    """The ONNX file of a jetson-orin artifact."""
    with quiet():
        artifact = deploykit.export(
            case.model,
            target="jetson-orin",
            precision="int8",
            example_inputs=case.calibration[0],
            calibration=case.calibration,
            calibration_method=method,
            profile=False,
            strict=False,
            progress=False,
            output=folder / f"ours-{method}",
        )
    return artifact.path / "model.onnx"


def modelopt(
    python: str, source: Path, folder: Path, batches: list[dict[str, np.ndarray]], method: str, rest: str = "fp32"
) -> Path:
    """nvidia-modelopt in its own interpreter; `rest` is the type of what it leaves in float."""
    data, made = folder / "calibration.npz", folder / f"modelopt-{method}-{rest}.onnx"
    np.savez(data, **{name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})
    command = [python, "-c", MODELOPT, str(source), str(made), str(data), method, rest]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not made.is_file():
        raise RuntimeError(done.stderr[-500:] or done.stdout[-500:])
    print(f"modelopt {json.loads(done.stdout.splitlines()[-1])['version']}")
    return made


def symmetric(source: Path, path: Path, batches: Iterable[dict[str, np.ndarray]]) -> Path:
    """ONNX Runtime's own quantizer, asked for what TensorRT wants: int8, symmetric, q/dq, quantized residuals."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    with quiet():
        q.quantize_static(
            str(source),
            str(path),
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "AddQDQPairToWeight": False,
                "QuantizeBias": False,
                "DedicatedQDQPair": False,
            },
        )
    return path


def outputs_of(path: Path, case: Case) -> list[np.ndarray]:
    """The first output for every test sample, q/dq computed as written."""
    import onnxruntime

    from deploykit.contract.tensors import TensorSpec

    probe = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in probe.get_inputs()]
    feeds = feeds_of(case, case.test, names)
    inputs = [TensorSpec(name, array.shape, str(array.dtype)) for name, array in feeds[0].items()]
    outputs = [TensorSpec(value.name, (), "float32") for value in probe.get_outputs()]
    with ReferenceSession(inputs, outputs, path) as session:
        return [session.run(sample)[outputs[0].name] for sample in feeds]


def verdict(path: Path) -> str:
    """How often each lint rule is broken, for both toolchains."""
    said = []
    for name in ("tensorrt", "migraphx"):
        broken = Counter(finding.rule for finding in lint(path, load_rules(name)))
        said.append(f"{name}: {', '.join(f'{rule} {count}' for rule, count in broken.items()) or 'none'}")
    return "; ".join(said)


def run_model(name: str, python: str | None, folder: Path) -> list[dict[str, Any]]:
    """Every file of one model, judged alike."""
    import torch

    case = CASES[name]()
    with torch.inference_mode():
        reference = [case.model(*sample).numpy() for sample in case.test]
    calibration = feeds_of(case, case.calibration, case.names)
    source = peers.torch_onnx(case.model, case.calibration[0], case.names, folder / "float.onnx")
    makers = {
        "deploykit jetson-orin": lambda: ours(case, folder, "default"),
        "deploykit jetson-orin, best": lambda: ours(case, folder, "best"),
        "ORT quantize_static int8 symmetric": lambda: symmetric(source, folder / "ort.onnx", calibration),
    }
    for method in ("max", "entropy") if python else ():
        makers[f"modelopt {method}, fp32 rest"] = lambda method=method: modelopt(  # type: ignore[misc]
            str(python), source, folder, calibration, method
        )
    rows = []
    for what, make in makers.items():
        try:
            path = make()
            judged = judge(reference, outputs_of(path, case), case.labels)
            rows.append({"model": name, "what": what, **judged, "lint findings": verdict(path)})
            print(f"{name}: {what}: {judged['SQNR dB']} dB", flush=True)
        except Exception as error:  # a peer that fails is a result
            reason = f"{type(error).__name__}: {error}"[:200]
            empty = {"SQNR dB": None, "top-1 agreement": None, "top-1": None}
            rows.append({"model": name, "what": what, **empty, "lint findings": reason})
    return rows


def main() -> None:
    """All models; a table and `results/tensorrt_peers.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(CASES), default=list(MODELS))
    parser.add_argument("--modelopt", help="Python that has nvidia-modelopt; left out, modelopt is not compared")
    arguments = parser.parse_args()
    threads()
    rows = []
    for name in arguments.models:
        with scratch() as folder:
            rows += run_model(name, arguments.modelopt, folder)
    notes = [
        "every file in ONNX Runtime on the CPU, q/dq computed as written; not a statement about speed on a GPU",
        "lint findings: broken rules of explicit quantization, counted by rule",
    ]
    if not arguments.modelopt:
        notes.append("modelopt was not compared: pass --modelopt PYTHON")
    report("tensorrt_peers", rows, notes=notes)


if __name__ == "__main__":
    main()
