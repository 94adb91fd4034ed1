"""NVIDIA ModelOpt's `auto_quantize` on a network of `ladder.py`, in an environment that has nvidia-modelopt.

    PYTHON benchmarks/ladder_modelopt.py NETWORK WEIGHTS GOAL_DB METHOD [--large]

`ladder.py --modelopt PYTHON` starts it. WEIGHTS is a `.safetensors` file of the parameters, so that both quantise the
same model; the last line printed is the result as JSON. `auto_quantize` takes no goal of accuracy: a layer is int8
(weights by channel, inputs by tensor, ranges by the largest value) or float, ranked by METHOD, under a bound on the
average bits of a weight. That bound is bisected here until the goal is met, from the scores of one run; each candidate
is calibrated and judged for real. Nothing is exported: the figures are those of its simulation in PyTorch.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ladder_networks import JUDGED, Network, network
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

LOW, HIGH, EVALUATIONS = 8.0, 16.0, 7  # bits: all in int8, none


def main() -> None:
    """Search, judge, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("weights", type=Path)
    parser.add_argument("goal", type=float)
    parser.add_argument("method", choices=("gradient", "kl_div"))
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import modelopt
    import modelopt.torch.quantization  # what is imported is not timed
    from safetensors.torch import load_file

    made = network(arguments.network, arguments.large)
    made.model.load_state_dict(load_file(arguments.weights))
    with tempfile.TemporaryDirectory(prefix="deploykit-benchmark-") as folder:
        found = searched(made, arguments.goal, arguments.method, Path(folder) / "scores")
    print(json.dumps({"version": modelopt.__version__, **found}))


def searched(made: Network, goal: float, method: str, scores: Path) -> dict[str, Any]:
    """The fewest bits that meet the goal on the samples that judge; seconds of this process's CPU for all of it."""
    began = time.process_time()
    judging = outputs(made.model, made.samples[-JUDGED:])
    low, high, bits = LOW, HIGH, LOW  # what is known to miss, what is known to meet, what is tried
    best: tuple[nn.Module, float] | None = None
    for _ in range(EVALUATIONS):
        model = quantised(made, bits, method, scores)
        reached = sqnr_db(judging, outputs(model, made.samples[-JUDGED:]))
        if reached >= goal:
            best, high = (model, reached), bits
            if bits == LOW:
                break
        else:
            low = bits
        bits = (low + high) / 2
    spent = time.process_time() - began
    kept, reached = best or (made.model, math.inf)
    fresh = sqnr_db(outputs(made.model, made.fresh), outputs(kept, made.fresh))
    return {
        "sqnr_db": reached if best else None, "fresh_db": fresh if best else None, "bits": high,
        "int8_share": integer_share(kept, made.samples[0]) if best else 0.0, "seconds": spent,
    }  # fmt: skip


def quantised(made: Network, bits: float, method: str, scores: Path) -> nn.Module:
    """A copy of the model with layers in int8 as `auto_quantize` chooses them; its scores are computed once."""
    import modelopt.torch.quantization as mtq

    labels = dict(
        zip(map(_key, made.samples), [out.argmax(-1) for out in outputs(made.model, made.samples)], strict=True)
    )

    def cross_entropy(output: Tensor, sample: Tensor) -> Tensor:
        """Against what the float model says, as there are no labels."""
        return nn.functional.cross_entropy(output.flatten(0, -2), labels[_key(sample)].flatten())

    calibration = made.samples[:-JUDGED]
    model, _ = mtq.auto_quantize(
        copy.deepcopy(made.model),
        constraints={"effective_bits": bits},
        quantization_formats=[mtq.INT8_DEFAULT_CFG],
        data_loader=calibration,
        forward_step=lambda model, sample: model(sample),
        loss_func=cross_entropy if method == "gradient" else None,
        num_calib_steps=len(calibration),
        num_score_steps=len(calibration),
        method=method,
        checkpoint=str(scores),
    )
    return model.eval()


def _key(sample: Tensor) -> bytes:
    return sample.numpy().tobytes()


def outputs(model: nn.Module, samples: Sequence[Tensor]) -> list[Tensor]:
    """What a model computes, sample after sample."""
    with torch.no_grad():
        return [model(sample).double() for sample in samples]


def sqnr_db(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """10 log10 of signal over noise, all samples together."""
    noise = sum(float((x - y).square().sum()) for x, y in zip(wanted, found, strict=True))
    return 10 * math.log10(sum(float(x.square().sum()) for x in wanted) / max(noise, 1e-30))


def integer_share(model: nn.Module, sample: Tensor) -> float:
    """Share of the multiply-accumulates whose weights and inputs both go through a quantiser that is on.

    The whole is counted of the operators that are called, products of two tensors (attention) among them.
    """
    integer = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        nonlocal integer
        made = output[0] if isinstance(output, tuple) else output
        integer += made.numel() * module.weight[0].numel()  # type: ignore[operator, index]

    hooks = [module.register_forward_hook(count) for module in model.modules() if _is_integer(module)]
    written_out = sdpa_kernel(SDPBackend.MATH)  # attention as the products that are counted
    with torch.no_grad(), written_out, FlopCounterMode(display=False) as counter:
        model(sample)
    for hook in hooks:
        hook.remove()
    return 2 * integer / counter.get_total_flops()


def _is_integer(module: nn.Module) -> bool:
    quantisers = [getattr(module, name, None) for name in ("weight_quantizer", "input_quantizer")]
    return all(each is not None and each.is_enabled for each in quantisers)


if __name__ == "__main__":
    main()
