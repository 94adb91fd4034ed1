"""What a precision has no use for is refused by name, on every target; of shared arguments each takes what it uses."""

from __future__ import annotations

from typing import Any

import pytest

from deploykit.cli.words import spoken
from deploykit.contract.errors import UsageError
from deploykit.contract.precision import Precision
from deploykit.contract.request import precisions_of_options
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.unused import ARGUMENTS, refuse_unused, used_of_each
from deploykit.plugin.registry import Resolved, resolve, toolchains


def _offers() -> list[tuple[str, Precision]]:
    """A device of every toolchain in every precision that both have."""
    found = []
    for name, target in sorted(toolchains().items()):
        offered = target.capabilities()
        for precision in offered.precisions:
            device = next((d for d in offered.devices.values() if precision in d.precisions), None)
            if device is not None:
                found.append((f"{device.name}:{name}", precision))
    return found


OFFERS = _offers()


def refusal(target: str, precision: Precision, **given: Any) -> UsageError | None:
    try:
        make_request(target, precision.value, **given)
    except UsageError as error:
        return error
    return None


@pytest.mark.parametrize(("target", "precision"), OFFERS)
def test_patterns_act_or_are_refused(target: str, precision: Precision) -> None:
    for name in ("include", "exclude"):
        error = refusal(target, precision, **{name: ["layer1.*"]})
        assert (error is not None) is precision.row.is_whole
        if error is not None:
            assert f"{name}=['layer1.*'] has no effect in {precision}" in error.message
            assert error.hint is not None and f"leave {name}= out" in error.hint
            assert f"--{name} 'layer1.*' has no effect in {precision}" in spoken(error.message)


@pytest.mark.parametrize(("target", "precision"), OFFERS)
def test_a_choice_of_ranges_acts_or_is_refused(target: str, precision: Precision) -> None:
    error = refusal(target, precision, method="percentile:99.9")
    assert (error is not None) is not precision.is_static
    if error is not None:
        assert "calibration_method='percentile:99.9' has no effect" in error.message
        assert "--method percentile:99.9" in spoken(error.message)


@pytest.mark.parametrize("target", sorted(toolchains()))
def test_an_option_of_other_precisions_is_refused(target: str) -> None:
    plugin = toolchains()[target]
    own = precisions_of_options(plugin.options_type)
    others = {"block_size": 64, "weight_threshold": 128, "io": "int8"}
    assert own.keys() <= others.keys(), "give the new option a value here that is not its default"
    for typed, precision in (offer for offer in OFFERS if offer[0].endswith(f":{target}")):
        resolved: Resolved = resolve(typed)
        for name, precisions in own.items():
            error = refusal(typed, precision, options={name: others[name]})
            assert (error is not None) is (precision not in precisions), (typed, precision, name)
            default = getattr(plugin.options_type, name)
            assert refusal(typed, precision, options={name: default}) is None, "it says what is so anyway"
            assert precisions <= set(resolved.target.capabilities().precisions)


def test_of_shared_arguments_each_takes_what_it_uses() -> None:
    target = resolve("x86-cpu").target
    given = {
        "include": ("a",),
        "exclude": (),
        "calibration_method": "mse",
        "options": {"block_size": 64, "opset": 20},
        "output": "elsewhere",
    }
    asked = [(target, Precision(name)) for name in ("int8", "fp32", "int4-weight-only")]
    quantised, floating, held = used_of_each(asked, given)
    assert quantised.keys() <= set(ARGUMENTS)
    assert quantised == {**quantised, "include": ("a",), "calibration_method": "mse", "options": {"opset": 20}}
    assert floating == {**floating, "include": (), "calibration_method": "default", "options": {"opset": 20}}
    assert held == {**held, "include": ("a",), "calibration_method": "default"}
    assert held["options"] == {"block_size": 64, "opset": 20}


def test_what_none_uses_is_refused_and_not_lost() -> None:
    target = resolve("x86-cpu").target
    asked = [(target, Precision.FP32), (target, Precision.FP16)]
    used = used_of_each(asked, {"exclude": ("a",), "calibration_method": "mse"})
    assert used == [{"exclude": ("a",), "calibration_method": "mse"}] * 2
    with pytest.raises(UsageError, match=r"exclude=.* has no effect in fp32"):
        refuse_unused(*asked[0], used[0])


@pytest.mark.parametrize(
    ("target", "options", "named"),
    [
        ("iphone-15", {"image_scale": 0.5}, "image_scale"),
        ("jetson-orin", {"gpu_fallback": False}, "gpu_fallback"),
    ],
)
def test_an_option_of_another_option_is_refused_without_it(target: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"{named}.* has no effect"):
        make_request(target, "fp16", options=options)
