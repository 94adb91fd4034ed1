"""Weights that are held at zero: through optimizers, copies, saved states and attention; and 2:4 is what it says."""

from __future__ import annotations

import copy
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploykit
from deploykit_training.pruning.masks import masks_of

sys.path.insert(0, str(Path(__file__).parent))

import misread as nets

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: value == 0 for name, value in model.named_parameters() if value.dim() > 1}


def held(model: nn.Module, masked: dict[str, Tensor]) -> bool:
    return all(bool((value[masked[name]] == 0).all()) for name, value in model.named_parameters() if name in masked)


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, 0.1),
    lambda p: torch.optim.Adagrad(p, 0.1),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["unstructured", "2:4"])
def test_zeros_survive_training(optimizer: Any, kind: str) -> None:
    model = network()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    report = deploykit.prune(model, (X,), kind=kind)
    assert report.sparsity == pytest.approx(0.5) and report.macs_after == report.macs_before
    assert list(model.state_dict()) == keys and all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    masked, before = zeros(model), model[0].weight.detach().clone()
    train(model, optimizer(model.parameters()))
    assert held(model, masked) and not torch.equal(before, model[0].weight)
    assert report.finish() is model and not masks_of(model) and held(model, masked)
    assert not any(m._forward_pre_hooks or m._state_dict_pre_hooks for m in model.modules())
    train(model, optimizer(model.parameters()))
    assert not held(model, masked)


def test_momentum_from_before_is_undone_before_the_weight_is_used_or_saved() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    deploykit.prune(model, (X,), kind="unstructured")
    masked = {name: value.clone() for name, value in zeros(model).items()}
    train(model, optimizer, steps=1)
    assert not held(model, masked)  # the optimizer moved them, and nothing has used them yet
    saved = model.state_dict()
    assert all(bool((saved[name][each] == 0).all()) for name, each in masked.items())
    train(model, optimizer, steps=1)
    model(X)
    assert held(model, masked)


def test_copies_pickles_and_loaded_states_are_masked_too() -> None:
    model, dense = network(), network().state_dict()
    deploykit.prune(model, (X,), kind="unstructured")
    masked = zeros(model)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        train(other, torch.optim.Adam(other.parameters(), 0.1))
        other(X)
        assert held(other, masked)
        assert not torch.equal(other[0].weight, model[0].weight)
    for assign in (False, True):
        model.load_state_dict(copy.deepcopy(dense), assign=assign)
        model(X)
        assert held(model, masked)
        train(model, torch.optim.Adam(model.parameters(), 0.1))
        assert held(model, masked)


def test_a_layer_called_twice_and_attention_train() -> None:
    torch.manual_seed(0)
    for model, x in ((nets.Twice(), nets.image()), (nets.Attention(), torch.randn(2, 5, 8))):
        report = deploykit.prune(model, (x,), kind="unstructured")
        masked = {f"{path}.weight": ~mask.keep for path, mask in masks_of(model).items()}
        assert "m" not in dict(model.named_modules()) or ("m.out_proj.weight" in masked and "m" in report.kept)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        other = copy.deepcopy(model)
        for each in (model, other):
            optimizer = torch.optim.SGD(each.parameters(), 0.1, weight_decay=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                each(x).square().sum().backward()
                optimizer.step()
            assert held(each, masked)


def test_two_of_every_four_along_the_input_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.ConvTranspose2d(12, 8, 2), nn.Flatten(1))
    weight = model[1].weight.detach().clone()
    report = deploykit.prune(model, (torch.randn(1, 3, 9, 9),), kind="2:4")
    assert report.kept == {"0": "3 input channels are no multiple of 4"}
    for layer, axis in ((model[1], 1), (model[2], 0)):
        fours = layer.weight.detach().movedim(axis, -1).reshape(-1, 4)
        assert bool(((fours != 0).sum(1) == 2).all())
    fours, kept = (w.movedim(1, -1).reshape(-1, 4).abs() for w in (weight, model[1].weight.detach()))
    assert torch.equal(kept.sum(1), fours.topk(2, dim=1).values.sum(1)) or torch.allclose(
        kept.sum(1), fours.topk(2, dim=1).values.sum(1)
    )


def test_the_smallest_of_a_layer_or_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1, 17).view(4, 4) / 100)
        model[1].weight.copy_(-torch.arange(1, 17).view(4, 4) / 10)
    layered = deploykit.prune(model, (torch.randn(1, 4),), 0.25, "unstructured", inplace=False)
    whole = deploykit.prune(model, (torch.randn(1, 4),), 0.5, "unstructured", scope="global", inplace=False)
    assert [row.nonzero_after for row in layered.modules] == [12, 12]
    assert [row.nonzero_after for row in whole.modules] == [1, 15]  # 0.16 and above, of 0.01..0.16 and 0.1..1.6
    assert whole.sparsity == 0.5 and int((model[0].weight == 0).sum()) == 0


def test_named_ratios_and_layers_left_out() -> None:
    report = deploykit.prune(network(), (X,), {"0": 0.25}, "unstructured")
    assert report.kept == {"2": "no ratio names it", "4": "no ratio names it"}
    assert report.modules[0].sparsity == pytest.approx(32 / (128 + 16))
    report = deploykit.prune(network(), (X,), kind="unstructured", exclude=["4"])
    assert report.kept == {"4": "excluded"}
    with pytest.raises(deploykit.UsageError, match="names no convolution"):
        deploykit.prune(network(), (X,), kind="unstructured", exclude=["9"])
    with pytest.raises(deploykit.ConversionError, match="nothing of"):
        deploykit.prune(nn.Linear(3, 3), (torch.randn(1, 3),), kind="2:4")


def test_a_second_mask_replaces_the_first() -> None:
    model = network()
    deploykit.prune(model, (X,), 0.25, "unstructured")
    report = deploykit.prune(model, (X,), 0.75, "unstructured")
    assert report.sparsity == pytest.approx(0.75) and len(masks_of(model)) == 3
    assert all(len(m._state_dict_pre_hooks) <= 1 for m in model.modules())


def test_distributed_data_parallel_keeps_the_zeros() -> None:
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = network()
        deploykit.prune(model, (X,), kind="unstructured")
        masked = zeros(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        train(wrapped, torch.optim.AdamW(wrapped.parameters(), 0.1))
        assert held(model, masked)
        assert not any("mask" in name for name in wrapped.state_dict())
    finally:
        distributed.destroy_process_group()
