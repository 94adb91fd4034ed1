"""The TensorRT plugin against the shared contract, on the board the project is known for and on a GPU with fp8."""

from __future__ import annotations

from deploykit.testing import TargetConformance

# NVIDIA's compiler, where it is installed, computes the narrow convolutions of the tiny model in float32.
IN_FLOAT = frozenset({"bf16"})


class TestJetsonOrin(TargetConformance):
    target = "jetson-orin"
    stored_only = IN_FLOAT


class TestH200(TargetConformance):
    target = "h200:tensorrt"
    stored_only = IN_FLOAT
    # the board's tests are the same
    at_night = frozenset(
        {
            "test_every_precision_exports_and_passes_its_gate",
            "test_what_is_only_stored_in_a_precision_is_refused_by_default",
            "test_several_inputs_and_named_outputs",
            "test_same_inputs_give_the_same_bytes",
            "test_caller_model_is_left_alone",
            "test_dynamic_batch_runs_other_sizes",
        }
    )
