"""Batch norms with the statistics of the batch: what PyTorch computes in training mode, on the folded layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import deploykit
from deploykit.testing.models import randomise_batch_norms
from deploykit_training.live_norms import normalised, norms_of


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_the_batch_norm_of_training_mode(affine: bool, momentum: float | None) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine, momentum=momentum)
    randomise_batch_norms(norm)
    if affine:
        with torch.no_grad():
            norm.weight[1] *= -1
    x, twin = torch.randn(5, 3, 6, 6), copy.deepcopy(norm)
    folded = copy.deepcopy(norm).eval()(conv(x))  # what the layer gives with its batch norm folded into it
    wanted = twin.train()(conv(x))
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.num_batches_tracked, momentum)
    found = normalised(folded, *tensors, norm.eps)  # type: ignore[arg-type]
    assert torch.allclose(found, wanted, atol=1e-5)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(norm, name), getattr(twin, name), atol=1e-5), name
    first = torch.autograd.grad(found.square().sum(), conv.weight, retain_graph=True)[0]
    second = torch.autograd.grad(wanted.square().sum(), conv.weight)[0]
    assert torch.allclose(first, second, atol=1e-3)


def test_statistics_move_in_the_first_steps_and_are_frozen_then(make_net: Any, digits: Any, train: Any) -> None:
    net, (images, _) = make_net().train(), digits
    data = [images[:32]]
    with deploykit.qat(
        net, example_inputs=(images[:1],), calibration=data, live_batch_norm_steps=2, progress=False
    ) as trained:
        assert len(norms_of(trained.graph.prepared.captured)) == 2
        before = net[1].running_mean.clone()
        with torch.no_grad():
            net(images[:8])
        assert torch.equal(before, net[1].running_mean)
        train(net, 2)
        moved = net[1].running_mean.clone()
        assert not torch.equal(before, moved) and int(net[1].num_batches_tracked) == 2
        train(net, 1)
        assert torch.equal(moved, net[1].running_mean)
        with torch.no_grad():
            last = net(images[:1])
    simulation = trained.prepared().simulation
    assert simulation is not None and torch.equal(simulation.graph_module(images[:1])[0], last)
