"""Structured pruning: what goes is as if it were masked, what cannot be shown stays and is named."""

from __future__ import annotations

import copy
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deploykit
from deploykit_training.pruning.choose import Choice, choose
from deploykit_training.pruning.groups import Group
from deploykit_training.pruning.masks import masks_of

sys.path.insert(0, str(Path(__file__).parent))

import misread as nets


def channels(report: deploykit.PruneReport) -> dict[str, int]:
    return {row.path: row.channels_after for row in report.modules if row.channels_before}


def test_half_of_the_channels_of_an_ordinary_network() -> None:
    model = nets.Residual()
    model.b.weight.requires_grad_(False)
    parameters, training = dict(model.named_parameters()), model.training
    report = deploykit.prune(model, (nets.image(),), ratio=0.5)
    assert report.model is model and model.training == training
    assert channels(report) == {"a": 8, "b": 8, "c": 8, "o": 10}
    assert report.kept == {"o": "its channels are an output of the model"}
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(new is parameters[name] for name, new in model.named_parameters())
    assert not model.b.weight.requires_grad and model.b.groups == 8 and model.na.num_features == 8
    # by hand: 8x3x9 + 8x9 + 8x8 weights at 64 places of one image of two, and 8x10 of the head
    assert report.macs_after == 2 * (64 * (8 * 27 + 8 * 9 + 8 * 8) + 8 * 10)
    assert report.macs["a"] == (2 * 64 * 16 * 27, 2 * 64 * 8 * 27)
    assert report.parameters_after == sum(p.numel() for p in model.parameters())
    before, after = 16 * 27 + 16 * 9 + 16 * 16 + 160, 8 * 27 + 8 * 9 + 8 * 8 + 80
    assert report.sparsity == pytest.approx(1 - after / before)
    model(nets.image()).sum().backward()


@pytest.mark.parametrize("statistics", [False, True])
def test_channels_that_are_always_zero_go_first_and_nothing_changes(statistics: bool) -> None:
    torch.manual_seed(0)
    model = nets.Residual()
    dead = torch.arange(16) % 2 == 0
    with torch.no_grad():
        for norm in (model.na, model.nb, model.nc):
            norm.running_mean.normal_()
            norm.weight[dead], norm.bias[dead] = 0, 0
    data = [nets.image(seed) for seed in range(2)] if statistics else None
    before = model.eval()(nets.image(7))
    deploykit.prune(model, (torch.zeros(2, 3, 8, 8),) if statistics else (nets.image(),), calibration=data)
    assert model.a.out_channels == 8
    assert torch.allclose(model(nets.image(7)), before, atol=1e-5)


CASES: list[tuple[type[nn.Module], Any, dict[str, int], dict[str, str]]] = [
    (nets.Folded, nets.image(), {"a": 16, "b": 12}, {"o": "output"}),
    (nets.Flags, torch.randn(2, 8), {"a": 16, "b": 16, "c": 8}, {"a": "does not run", "b": "does not run"}),
    (nets.Functional, nets.image(), {"a": 16, "b": 24, "d": 8}, {"a": "tied to", "b": "tied to", "c": "tied to"}),
    (nets.Twice, nets.image(), {"a": 8, "b": 8}, {}),
    (nets.Grouped, nets.image(), {"a": 16, "g": 16, "s": 32, "c": 8}, {"s": "not the same as masking"}),
    (
        nets.Attention,
        torch.randn(2, 5, 8),
        {"q": 32, "v": 32, "f": 32, "g": 32},
        {"v": "does not run", "g": "heads", "m.out_proj": "used outside of it"},
    ),
    (
        nets.QuietHeads,
        torch.randn(2, 5, 8),
        {"i": 16, "q": 32, "v": 32, "p": 16, "f": 16},
        {"q": "not the same as masking", "v": "not the same as masking"},
    ),
    (nets.SharedKeys, torch.randn(2, 5, 8), {"q": 32, "k": 16, "v": 16, "f": 32}, {"q": "", "k": "", "g": ""}),
    (nets.Centred, nets.image(), {"a": 16, "b": 8}, {"a": "not the same as masking"}),
    (nets.Normed, torch.randn(2, 8), {"a": 16, "b": 16}, {}),
]


@pytest.mark.parametrize(("network", "x", "after", "kept"), CASES, ids=[case[0].__name__ for case in CASES])
def test_what_a_pruner_misreads(network: Any, x: torch.Tensor, after: dict[str, int], kept: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = network().eval()
    shape, keys = model(x).shape, list(model.state_dict())
    report = deploykit.prune(model, (x,), ratio=0.5)
    found = channels(report)
    assert {path: found[path] for path in after} == after
    assert all(reason in report.kept[path] for path, reason in kept.items()), report.kept
    assert model(x).shape == shape and list(model.state_dict()) == keys


def test_a_failure_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 16))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(deploykit.ConversionError, match=r"nothing of Sequential can be removed: 0: its channels"):
        deploykit.prune(model, (torch.randn(2, 8),))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].out_features == 16


def test_a_copy_where_asked() -> None:
    model = nets.Twice()
    report = deploykit.prune(model, (nets.image(),), inplace=False)
    assert model.a.out_channels == 16 and report.model is not None
    assert report.model.get_submodule("a").out_channels == 8


def test_counts_are_rounded_so_that_fewer_go() -> None:
    report = deploykit.prune(nets.Residual(), (nets.image(),), ratio=0.6, round_to=8)
    assert channels(report)["a"] == 8
    with pytest.raises(deploykit.ConversionError, match="none can go in multiples of 16"):
        deploykit.prune(nets.Residual(), (nets.image(),), ratio=0.6, target="x86-cpu")


def test_ratios_by_layer_and_layers_left_out() -> None:
    report = deploykit.prune(nets.Folded(), (nets.image(),), ratio={"a": 0.25})
    assert channels(report) == {"a": 24, "b": 24, "o": 4} and report.kept["b"] == "no ratio names it"
    report = deploykit.prune(nets.Folded(), (nets.image(),), exclude=["a"])
    assert channels(report)["a"] == 32 and report.kept["a"] == "excluded by pattern 'a'"
    with pytest.raises(deploykit.UsageError, match="names no layer"):
        deploykit.prune(nets.Folded(), (nets.image(),), exclude=["nowhere"])


@pytest.mark.parametrize("scope", ["global", "sensitivity"])
def test_over_the_whole_model_most_goes_where_least_is_lost(scope: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        model[2].weight[:, :24] *= 1e-4  # three in four of the first layer's channels are next to nothing
    report = deploykit.prune(model, (torch.randn(64, 8),), ratio=0.5, scope=scope)
    found = channels(report)
    assert found["0"] < found["2"] and found["0"] <= 12
    assert 28 <= found["0"] + found["2"] <= 36


def test_units_that_go_together_are_rounded_together() -> None:
    group = Group("a", 8, (), tuple((i, i + 4) for i in range(4)))
    energy = {"a": torch.tensor([3.0, 0, 1, 2, 3, 0, 1, 2])}
    chosen, kept = choose([group], {"a": 0.5}, energy)
    assert chosen == [Choice(group, (1, 2, 5, 6))] and not kept
    chosen, kept = choose([group], {"a": 0.5}, energy, round_to=8)
    assert not chosen and "multiples of 8" in kept["a"]


def test_requests_that_contradict_themselves() -> None:
    x = (nets.image(),)
    wrong: list[dict[str, Any]] = [
        {"ratio": 0.0},
        {"ratio": 1.0},
        {"ratio": {}},
        {"kind": "half"},
        {"scope": "all"},
        {"kind": "2:4", "ratio": 0.3},
        {"kind": "unstructured", "scope": "sensitivity"},
        {"round_to": 0},
        {"min_speedup": 1.5},
        {"profile": True},
        {"min_speedup": -1.0, "target": "x86-cpu"},
    ]
    for arguments in wrong:
        with pytest.raises(deploykit.UsageError):
            deploykit.prune(nets.Residual(), x, **arguments)


def test_the_report_is_read_by_people_and_programs() -> None:
    report = deploykit.prune(nets.Folded(), (nets.image(),))
    text, data = str(report), report.to_dict()
    assert "32 -> 16" in text and "kept: o: its channels are an output of the model" in text
    assert data["parameters_after"] == report.parameters_after and data["gain"] is None
    assert [row["path"] for row in data["modules"]] == [row.path for row in report.modules]
    assert not masks_of(report.model or nn.Identity())


def test_again_and_again() -> None:
    model = nets.Residual()
    widths = [deploykit.prune(model, (nets.image(),), ratio=0.25) for _ in range(3)]
    assert all(channels(b)["a"] < channels(a)["a"] for a, b in pairwise(widths))
