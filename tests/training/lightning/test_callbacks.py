"""The callbacks on a real Trainer: fit, validate, test, resume; checkpoints stay those of the user's module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deploykit
from deploykit.contract.errors import UsageError
from deploykit.lightning import Calibration, Export, QuantizationAwareTraining

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning", "ignore:.*LeafSpec.*")


class Digits(LightningModule):
    def __init__(self, net: nn.Module, *, around: bool = False) -> None:
        super().__init__()
        self.net, self.around = net, around
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x) if self.around else self(x), y)

    def validation_step(self, batch: Any, index: int) -> None:
        self.seen.append(self(batch[0]).detach())
        self.log("loss", nn.functional.cross_entropy(self.seen[-1], batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def trainer(folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    options = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False, **options}
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, callbacks=callbacks, **options)


def test_fit_validate_test_and_resume(make_net: Any, loader: Any, tmp_path: Path) -> None:
    module, qat = Digits(make_net()), QuantizationAwareTraining(target="x86-cpu")
    keys = list(module.state_dict())
    saver = ModelCheckpoint(tmp_path, save_last=True)
    run = trainer(tmp_path, [qat, saver], num_sanity_val_steps=0)
    run.fit(module, loader, loader)
    x = next(iter(loader))[0]
    assert not torch.equal(module.seen[0], module(x))  # validated rounded; forward is the float one again
    quantised = trained_outputs(qat, x)
    assert torch.equal(quantised, module.seen[0])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == keys

    module.seen.clear()
    trainer(tmp_path, []).test(module, loader, verbose=False)
    assert torch.equal(module.seen[0], module(x))  # without the callback the checkpoint is the float model

    fresh, other = Digits(make_net()), QuantizationAwareTraining(target="x86-cpu")
    trainer(tmp_path, [other]).test(fresh, loader, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert torch.equal(fresh.seen[0], quantised)  # with it, what was trained, with the ranges of the run

    again, third = Digits(make_net()), QuantizationAwareTraining(target="x86-cpu")
    run = trainer(tmp_path, [third], max_epochs=2, num_sanity_val_steps=1, enable_checkpointing=False)
    run.fit(again, loader, loader, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(again.seen[0], quantised)  # the sanity check before the first step after the resumption
    assert run.global_step == 6 and third.table == qat.table
    trainer(tmp_path, [third], enable_checkpointing=False).fit(Digits(make_net()), calm(loader))
    assert third.table != qat.table  # another fit takes ranges of its own


def test_learned_scales_are_trained_kept_and_exported(make_net: Any, loader: Any, tmp_path: Path) -> None:
    qat, module = QuantizationAwareTraining(target="x86-cpu", scales="learned", scales_lr=0.05), Digits(make_net())
    saver = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, [qat, saver]).fit(module, loader)
    scales = [float(each.detach()) for each in qat.trained.scales]
    assert any(abs(each) > 0.01 for each in scales)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == list(module.state_dict())
    (state,) = [value for key, value in checkpoint["callbacks"].items() if "QuantizationAware" in key]
    assert state["learned"]["scales"].tolist() == pytest.approx(scales)

    x = next(iter(loader))[0]
    quantised = trained_outputs(qat, x)
    fresh, other = Digits(make_net()), QuantizationAwareTraining(target="x86-cpu", scales="learned")
    trainer(tmp_path, [other]).test(fresh, loader, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert torch.equal(fresh.seen[0], quantised)
    artifact = qat.trained.export(output=tmp_path / "a", profile=False, progress=False, strict=False)
    assert artifact.recipe.ranges and artifact.parity.chain[0].reference == "trained graph"


def calm(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same with half of the contrast: other ranges."""
    images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
    return DataLoader(TensorDataset(images / 2, labels), batch_size=32)


def trained_outputs(qat: Any, x: Tensor) -> Tensor:
    (result,) = qat.trained.run({qat.trained.model_inputs[0]: x.numpy()}).values()
    return torch.from_numpy(result)


def test_export_writes_what_was_trained_and_logs_parity(make_net: Any, loader: Any, tmp_path: Path) -> None:
    qat = QuantizationAwareTraining(target="x86-cpu", module="net")
    export = Export(targets=["x86-cpu", "x86-cpu-avx2"], output=tmp_path / "out", module="net")
    logger = CSVLogger(tmp_path, name="log")
    run = trainer(tmp_path, [export, qat], logger=logger, enable_checkpointing=False, log_every_n_steps=1)
    run.fit(Digits(make_net(), around=True), loader)
    assert not export.failures and set(export.artifacts) == {"x86-cpu", "x86-cpu-avx2"}
    assert export.artifacts["x86-cpu"].parity.chain[0].reference == "trained graph"
    assert export.artifacts["x86-cpu-avx2"].parity.chain[0].reference == "float PyTorch"
    written = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "x86-cpu/parity_sqnr_db" in written and "x86-cpu-avx2/top1" in written


def test_a_step_that_goes_around_forward_is_refused(make_net: Any, loader: Any, tmp_path: Path) -> None:
    module = Digits(make_net(), around=True)
    with pytest.raises(UsageError, match=r"did not call self\(") as caught:
        trainer(tmp_path, [QuantizationAwareTraining()], enable_checkpointing=False).fit(module, loader)
    assert "'net'" in str(caught.value)
    assert "forward" not in module.net.__dict__


def test_calibration_tests_what_the_target_computes(make_net: Any, loader: Any, tmp_path: Path) -> None:
    module, calibration = Digits(make_net()), Calibration(target="x86-cpu")
    run = trainer(tmp_path, [calibration], enable_checkpointing=False)
    run.fit(module, loader)
    assert calibration.table is not None
    run.test(module, loader, verbose=False)
    x = next(iter(loader))[0]
    assert torch.equal(module.seen[0], trained_outputs(calibration, x))
    assert not torch.equal(module.seen[0], module(x))


def test_what_cannot_be_is_refused(make_net: Any, loader: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ranges"):
        trainer(tmp_path, [QuantizationAwareTraining()]).test(Digits(make_net()), loader, verbose=False)
    with pytest.raises(UsageError, match="no submodule 'nett'"):
        trainer(tmp_path, [QuantizationAwareTraining(module="nett")]).fit(Digits(make_net()), loader)
    with pytest.raises(UsageError, match="not a list"):
        Export(targets="x86-cpu")
    with pytest.raises(deploykit.UnknownTargetError):
        Export(targets=["x86-cpu", "no-such-target"])


def test_sharding_is_refused() -> None:
    class FSDPStrategy:
        pass

    class Run:
        strategy = FSDPStrategy()

    with pytest.raises(UsageError, match="shards parameters"):
        QuantizationAwareTraining().setup(Run(), None, "fit")  # type: ignore[arg-type]
