"""What float16 cannot hold in a captured graph, and therefore stays float32: one decision for every target."""

from deploykit_targets._float16.plan import Float16Plan, plan_float16
from deploykit_targets._float16.simulation import simulated

__all__ = ["Float16Plan", "plan_float16", "simulated"]
