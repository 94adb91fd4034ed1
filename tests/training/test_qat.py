"""Training on the target's own scheme: exact before the first step and after the last, and nothing of ours left."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import deploykit
from deploykit import pipeline
from deploykit.contract.errors import (
    CalibrationError,
    CaptureError,
    ConversionError,
    MissingDependencyError,
    UnsupportedPrecisionError,
    UsageError,
)
from deploykit.plugin.registry import resolve, toolchain
from deploykit.testing.models import ZOO
from deploykit_training.live import own_of
from deploykit_training.trained import TrainingWarning

Make = Callable[[], nn.Module]
TARGETS = ("x86-cpu", "android", "jetson-orin", "iphone-15", "x86-cpu:openvino")


def toolchain_of(target: str) -> None:
    """Skip where the packages of a target are in another environment."""
    try:
        resolve(target).target.check_installed(export=True)
    except MissingDependencyError as error:
        pytest.skip(error.message)


def started(net: nn.Module, images: Tensor, **options: Any) -> Any:
    options = {"calibration": [images[:32], images[32:64]], "progress": False, **options}
    return deploykit.qat(net, example_inputs=(images[:1],), **options)


@pytest.mark.parametrize("target", TARGETS)
def test_before_the_first_step_it_computes_what_is_placed(target: str, make_net: Make, digits: Any) -> None:
    toolchain_of(target)
    net, (images, _) = make_net(), digits
    captured = pipeline.capture(net, example_inputs=(images[:1],), dynamic_batch=True)
    run = pipeline.calibrate(captured, [images[:32], images[32:64]], progress=False)
    prepared = pipeline.prepare(pipeline.request(target, "int8"), captured, run)
    simulation: Any = toolchain(prepared.request.toolchain).simulate(prepared)
    placed = simulation.graph_module  # the placed graph; what a layer or the device rounds when it runs is rounded, too
    with started(net, images, target=target) as trained, torch.no_grad():
        for part in (images[:1], images[100:107]):
            assert torch.equal(trained.model(part), placed(part)[0])
            assert not torch.equal(trained.model(part), type(net).forward(net, part))


def test_an_lstm_trains_with_the_steps_that_are_rounded_when_they_run(tmp_path: Path) -> None:
    toolchain_of("x86-cpu")
    net, example = ZOO["lstm_classifier"]()
    with deploykit.qat(
        net, target="x86-cpu", example_inputs=example, calibration=[example] * 2, progress=False
    ) as trained:
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            trained.model(*example).square().sum().backward()
            optimizer.step()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (net.rnn.weight_hh_l0, net.rnn.bias_ih_l1))
        artifact = trained.export(output=tmp_path / "a", profile=False, progress=False)
    assert artifact.achieved.as_asked_fraction == 1.0
    assert artifact.parity is not None and artifact.parity.sqnr_db > 60.0


QUICK = ("unet_like", "gru_classifier", "transformer_encoder", "two_inputs_dict_output")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.nightly) for n in ZOO])
def test_every_family_of_networks_trains(name: str) -> None:
    net, example = ZOO[name]()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with deploykit.qat(net, example_inputs=example, calibration=[example] * 2, progress=False) as trained:
        result = trained.model(**example) if isinstance(example, dict) else trained.model(*example)
        outputs = list(result.values()) if isinstance(result, dict) else [result]
        sum(each.square().sum() for each in outputs).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_what_is_exported_is_what_was_trained(make_net: Make, digits: Any, train: Any, tmp_path: Path) -> None:
    net, (images, _) = make_net(), digits
    keys, own = list(net.state_dict()), net.forward
    with started(net, images) as trained:
        losses = train(trained.model, 6)
        assert trained.model is net and list(net.state_dict()) == keys
        with torch.no_grad():
            last = trained.model(images[:1])
    assert losses[-1] < losses[0] and net.forward == own
    artifact = trained.export(output=tmp_path / "a", profile=False, progress=False)
    chain = artifact.parity.chain
    assert [link.candidate for link in chain[:2]] == ["simulated q/dq", "artifact"]
    assert chain[0].reference == "trained graph" and chain[0].worst.max_abs == 0.0
    assert chain[-1].reference == "trained graph" and artifact.parity.sqnr_db >= 60
    with artifact.open() as session:
        (result,) = session.run({artifact.manifest.inputs[0].name: images[:1].numpy()}).values()
    assert torch.allclose(torch.from_numpy(result), last, atol=1e-4)
    simulated = trained.prepared().simulation
    assert torch.equal(simulated.graph_module(images[:1])[0], last)


def test_an_export_stays_what_it_was_while_training_goes_on(make_net: Make, digits: Any, train: Any) -> None:
    net, (images, _) = make_net(), digits
    with started(net, images) as trained:
        prepared = trained.prepared()
        name = prepared.reference.inputs[0].name
        before = prepared.trained.run({name: images[:1].numpy()})
        train(net, 1)
        after = prepared.trained.run({name: images[:1].numpy()})
        assert all((before[key] == after[key]).all() for key in before)


def test_copies_pickles_autocast_and_checkpointing(make_net: Make, digits: Any, train: Any) -> None:
    net, (images, labels) = make_net(), digits
    with started(net, images) as trained:
        average = torch.optim.swa_utils.AveragedModel(trained.model)
        train(net, 1)
        average.update_parameters(net)  # the first is a copy
        assert torch.equal(average(images[:3]), net(images[:3]))
        train(net, 1)
        twin = copy.deepcopy(net)
        assert torch.equal(twin(images[:3]), net(images[:3]))
        with torch.no_grad():
            twin[0].weight.zero_()
        assert not torch.equal(twin(images[:3]), net(images[:3]))
        assert not torch.equal(average(images[:3]), net(images[:3]))
        with torch.autocast("cpu", torch.bfloat16):
            half = net(images[:8])
        nn.functional.cross_entropy(half.float(), labels[:8]).backward()
        assert net[0].weight.grad is not None and bool(net[0].weight.grad.isfinite().all())
        checkpointed = checkpoint(net, images[:8], use_reentrant=False)
        assert torch.equal(checkpointed, net(images[:8]))
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(images[:3]), net(images[:3]))  # with its own forward
    assert loaded.state_dict().keys() == net.state_dict().keys()


def test_running_statistics_and_what_it_is_called_with_are_checked(make_net: Make, digits: Any) -> None:
    net, (images, _) = make_net(), digits
    mean = net[1].running_mean.clone()
    with started(net.train(), images) as trained:
        trained.model(images[:4])
        assert torch.equal(mean, net[1].running_mean) and net.training
        with pytest.raises(UsageError, match="captured"):
            trained.model(images[:4, :, :4])
        with pytest.raises(UsageError, match="labels"):
            trained.model(images[:4], labels=1)
        with pytest.raises(UsageError, match="already"):
            started(net, images)
        with pytest.raises(UsageError, match=r"trained\.export"):
            deploykit.export(net, "x86-cpu", "fp32", example_inputs=(images[:1],))


@pytest.mark.parametrize("kind", ["own", "torch"])
def test_masks_hold_while_it_trains(kind: str, make_net: Make, digits: Any) -> None:
    net, (images, labels) = make_net(), digits
    if kind == "own":
        deploykit.prune(net, (images[:1],), ratio=0.5, kind="unstructured")
        zeros = {name: each == 0 for name, each in net.named_parameters() if each.dim() > 1 and bool((each == 0).any())}
        assert zeros
    else:
        prune.l1_unstructured(net[3], "weight", 0.5)
        prune.l1_unstructured(net[8], "weight", 0.5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    with started(net, images) as trained:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[:32]), labels[:32]).backward()
            optimizer.step()
        simulation = trained.prepared().simulation
        with torch.no_grad():
            assert simulation is not None and torch.equal(simulation.graph_module(images[:1])[0], net(images[:1]))
    if kind == "own":
        assert all(bool((net.get_parameter(name)[mask] == 0).all()) for name, mask in zeros.items())
    else:
        module = trained.prepared().captured.graph_module
        stored = [each for _, each in (*module.named_parameters(), *module.named_buffers())]
        assert [int((each == 0).sum()) for each in stored if each.shape == (10, 32)] == [160]


def test_sharded_parameters_are_refused() -> None:
    class DTensor:
        pass

    net = nn.Linear(2, 2)
    del net.weight
    net.weight = DTensor()  # type: ignore[assignment]
    with pytest.raises(ConversionError, match="sharded"):
        own_of(net)("weight")


class Fixed(nn.Module):
    """A batch that cannot vary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.a(x).relu().reshape(4, 16))
        return result


def test_a_fixed_batch_is_refused_with_the_way_out() -> None:
    x, net = torch.randn(4, 16), Fixed()
    with pytest.raises(CaptureError, match="batch of Fixed cannot vary") as caught:
        deploykit.qat(net, example_inputs=(x,), calibration=[x], progress=False)
    assert "dynamic_batch=False" in str(caught.value)
    with deploykit.qat(net, example_inputs=(x,), calibration=[x], dynamic_batch=False, progress=False) as trained:
        assert trained.model(x).shape == (4, 16)
        with pytest.raises(UsageError, match="drop_last"):
            trained.model(x[:3])


def test_what_cannot_be_trained_is_refused(make_net: Make, digits: Any) -> None:
    net, (images, _) = make_net(), digits
    with pytest.raises(CalibrationError, match="starts from ranges"):
        deploykit.qat(net, example_inputs=(images[:1],), progress=False)
    with pytest.raises(UnsupportedPrecisionError, match="rounds nothing"):
        started(net, images, precision="int8-dynamic")
    with pytest.raises(UsageError, match="float32"):
        started(net.half(), images)
    program = torch.export.export(make_net().eval(), (images[:1],))
    with pytest.raises(UsageError, match="no parameters to train"):
        started(program, images)  # type: ignore[arg-type]


def accuracy(images: Tensor, labels: Tensor) -> Callable[[Any], float]:
    def evaluate(session: Any) -> float:
        name = session.inputs[0].name
        (scores,) = session.run({name: images.numpy()}).values()
        return float((scores.argmax(1) == labels.numpy()).mean())

    return evaluate


def test_it_never_returns_worse_than_its_start(make_net: Make, digits: Any) -> None:
    net, (images, labels) = make_net(), digits
    before = {key: value.clone() for key, value in net.state_dict().items()}
    metric = accuracy(images[:64], labels[:64])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with started(net, images, evaluate=metric, max_drop=1.0) as trained, torch.no_grad():
            wanted = trained.metrics["start"]
            right = trained.model(images[:64]).argmax(1) == labels[:64]
            for parameter in net.parameters():
                parameter.fill_(-1.0)
            net[8].bias.copy_(torch.nn.functional.one_hot(torch.tensor(worst(labels[:64])), 10) * 99.0)
    assert wanted == pytest.approx(float(right.float().mean()))
    assert trained.metrics["trained"] < wanted
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [("without training" in n, "the start again" in n) for n in trained.notes] == [(True, False), (False, True)]
    assert [each.category for each in said] == [TrainingWarning, TrainingWarning]


def worst(labels: Tensor) -> int:
    """The rarest class: whoever always answers it is right least often."""
    return int(torch.bincount(labels, minlength=10).argmin())


def test_parameters_that_nothing_reaches_are_named(make_net: Make, digits: Any) -> None:
    net, (images, _) = make_net(), digits
    net.spare = nn.Linear(2, 2)
    net.forward = lambda x: type(net).forward(nn.Sequential(*list(net)[:-1]), x)  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained = started(net, images)
    assert any("spare.weight" in note for note in trained.notes)
