"""Every op that coremltools registers is covered, and every covered op is tested."""

import re
from pathlib import Path

from deploykit_targets.coreml.mil_evaluator.milproto import core_ops
from deploykit_targets.coreml.mil_evaluator.ops_control import EXECUTOR_OPS
from deploykit_targets.coreml.mil_evaluator.rules import IN_DISTRIBUTION, RULES, SUPPORTED


def test_everything_registered_is_covered(mil):
    registered = set(core_ops())
    assert len(registered) == 168
    assert registered <= SUPPORTED
    assert SUPPORTED - registered == {"coreml_update_state"}  # of the coreml dialect; a file says write_state


def test_ops_that_are_only_right_in_distribution_are_the_random_ones(mil):
    assert {name for name in core_ops() if name.startswith("random_")} == IN_DISTRIBUTION
    assert all(not RULES[name].pure for name in IN_DISTRIBUTION)


def test_every_version_of_an_op_has_inputs_that_its_rule_takes(mil):
    """A parameter that a newer op set adds must not surprise the rule."""
    import inspect

    for name, versions in core_ops().items():
        if name in EXECUTOR_OPS:
            continue
        known = set(inspect.signature(RULES[name].function).parameters)
        for operation in versions.values():
            wanted = {key for key in operation.input_spec.input_types if not key.startswith("_")}
            assert wanted <= known, f"{name} of {operation.__module__}: {wanted - known}"


def test_every_rule_is_named_in_a_test():
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    missing = sorted(name for name in SUPPORTED - {"const"} if not re.search(rf"\b{name}\b", text))
    assert not missing
