"""Where the time of a profile goes by kind of work, and why a quantised artifact is slower than its float build.

Operators are told apart by name and type as the runtime reports them; what it does not report is not guessed at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from deploykit.contract.achieved import Achieved
from deploykit.contract.findings import Finding
from deploykit.contract.precision import Evidence
from deploykit.judge.profiling import Profile

RULE = "slower-than-float"

_CONVERSIONS = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear Cast Reorder Convert FakeQuantize"
    " quantize dequantize".split()
)
_SHOWN = 3
_FEW_MACS = 1_000_000
"""Fewer multiply-accumulates than this take some 10 us on one core in float: calls, not products, are what is timed."""


def time_shares(profile: Profile | None, achieved: Achieved) -> dict[str, float]:
    """Share of the operators' time of every float activation whose time the runtime tells by name, 0 to 1."""
    total = sum(each.median_us for each in profile.op_times) if profile else 0.0
    if profile is None or not total:
        return {}
    names = {each.name for each in achieved.float_activations}
    spent: dict[str, float] = {}
    for each in profile.op_times:
        if each.name in names and each.op not in _CONVERSIONS:
            spent[each.name] = spent.get(each.name, 0.0) + each.median_us
    return {name: own / total for name, own in spent.items()}


def explained(profile: Profile, achieved: Achieved) -> tuple[Finding, ...]:
    """A warning with the largest causes where an artifact is slower than the float build it was timed with."""
    if profile.worth_it is None or profile.worth_it >= 1.0 or achieved.requested == "fp32":
        return ()
    how = "by estimate" if profile.evidence is Evidence.ESTIMATE else "measured"
    causes = "; ".join(_causes(profile, achieved)) or "the runtime tells no times by operator"
    message = (
        f"{achieved.requested} is {profile.worth_it:.2f} x as fast as the {profile.baseline} ({how}): {causes}."
        " Keep the float build, or exclude= the layers between float activations"
    )
    return (Finding(RULE, "", "", message, "warning"),)


def _causes(profile: Profile, achieved: Achieved) -> Iterable[str]:
    """The kinds of work that a float build does not have, or has too, by their share of the time."""
    total = sum(each.median_us for each in profile.op_times)
    if total:
        found = {
            "float activations": _by_kind(time_shares(profile, achieved), achieved),
            "conversions between float and integers": _conversions(profile, total),
            "layers that are not as asked": _left(profile, achieved, total),
        }
        for what, shares in sorted(found.items(), key=lambda item: -sum(item[1].values())):
            if sum(shares.values()) >= 0.01:
                yield f"{sum(shares.values()):.0%} of its time is {what} ({_largest(shares)})"
    elif achieved.float_activations:
        moved = sum(each.bytes for each in achieved.float_activations)
        kinds = Counter(each.op for each in achieved.float_activations)
        named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_SHOWN))
        yield f"{len(achieved.float_activations)} float activations move {moved:,} bytes a run ({named})"
    if sum(achieved.macs.values()) < _FEW_MACS:
        yield f"there are only {sum(achieved.macs.values()):,} multiply-accumulates: calling operators takes the time"


def _by_kind(shares: Mapping[str, float], achieved: Achieved) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in achieved.float_activations:
        found[each.op] = found.get(each.op, 0.0) + shares.get(each.name, 0.0)
    return found


def _conversions(profile: Profile, total: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in profile.op_times:
        if each.op in _CONVERSIONS:
            found[each.op] = found.get(each.op, 0.0) + each.median_us / total
    return found


def _left(profile: Profile, achieved: Achieved, total: float) -> dict[str, float]:
    left = {layer.name: layer.module_path or layer.name for layer in achieved.not_as_requested if layer.macs}
    found: dict[str, float] = {}
    for each in profile.op_times:
        if each.name in left and each.op not in _CONVERSIONS:
            found[left[each.name]] = found.get(left[each.name], 0.0) + each.median_us / total
    return found


def _largest(shares: Mapping[str, float]) -> str:
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ranked[:_SHOWN] if share >= 0.01)
