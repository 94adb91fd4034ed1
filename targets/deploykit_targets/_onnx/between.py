"""The type of what stays float in a file, and the simulated graph that rounds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.contract.precision import Precision
from deploykit_calibration.between import float_between
from deploykit_targets._float16 import plan_float16, simulated

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared
    from deploykit_calibration.simulate import SimulatedModel

_ASKED = {Precision.FP16: "float16", Precision.BF16: "bfloat16", Precision.MIXED: "float16"}


def float_name(prepared: Prepared) -> str:
    """The type of what is not quantized: the precision's own, or as the scheme's `between` says."""
    return _ASKED.get(prepared.precision) or float_between(prepared)


def simulation_of(prepared: Prepared) -> SimulatedModel | None:
    """The q/dq graph in PyTorch, with float16 between integers where the file has it; None where none are placed."""
    if not prepared.rounds:
        return None
    if float_name(prepared) != "float16":
        return prepared.simulation
    return simulated(prepared.captured, prepared.placed, plan_float16(prepared).kept)
