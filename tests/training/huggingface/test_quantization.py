"""The callback on a real Trainer: losses from labels, checkpoints of the model's own, a run that resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deploykit
from deploykit.contract.errors import UsageError

pytest.importorskip("accelerate", reason="the Trainer of transformers needs it")
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from deploykit_training.huggingface.quantization import FILE, SCALES

pytestmark = pytest.mark.filterwarnings("ignore")


def bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8, num_labels=3, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def data(count: int) -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 32, (count, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 3} for row in ids]


def trainer(model: Any, folder: Path, callback: Any, **options: Any) -> Any:
    options = {"max_steps": 3, "save_steps": 3, "learning_rate": 1e-3, **options}
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=8, per_device_eval_batch_size=8, report_to=[], use_cpu=True,
        disable_tqdm=True, seed=0, **options,
    )  # fmt: skip
    return Trainer(model, args, train_dataset=data(64), eval_dataset=data(16), callbacks=[callback])


def test_fit_save_resume_and_export(tmp_path: Path) -> None:
    qat, model = deploykit.transformers.QuantizationAwareTraining("x86-cpu"), bert()
    keys = list(model.state_dict())
    run = trainer(model, tmp_path, qat, eval_strategy="steps", eval_steps=3, logging_steps=1)
    run.train()
    losses = [row for row in run.state.log_history if "loss" in row or "eval_loss" in row]
    assert len(losses) >= 4 and all(math.isfinite(next(iter(row.values()))) for row in losses)
    assert "forward" not in model.__dict__ and list(model.state_dict()) == keys
    folder = tmp_path / "checkpoint-3"
    assert (folder / FILE).is_file() and not [name for name in keys if "deploykit" in name]

    batch = {name: torch.stack([row[name] for row in data(4)]) for name in ("input_ids", "attention_mask")}
    quantised = qat.trained.run({name: value.numpy() for name, value in batch.items()})["logits"]
    with torch.no_grad():
        assert not torch.equal(torch.from_numpy(quantised), model(**batch).logits)

    again, other = deploykit.transformers.QuantizationAwareTraining("x86-cpu"), bert()
    trainer(other, tmp_path, again, max_steps=4, save_strategy="no").train(resume_from_checkpoint=str(folder))
    assert again.table == qat.table

    artifact = qat.trained.export(output=tmp_path / "a", profile=False, progress=False, dynamic_batch=True)
    assert artifact.parity.chain[0].reference == "trained graph" and artifact.parity.sqnr_db >= 60


@pytest.mark.nightly
def test_learned_scales_are_trained_and_resumed(tmp_path: Path) -> None:
    qat, model = deploykit.transformers.QuantizationAwareTraining("x86-cpu", scales="learned", scales_lr=0.05), bert()
    trainer(model, tmp_path, qat).train()
    learned = [float(scale.detach()) for scale in qat.trained.scales]
    assert any(abs(each) > 0.01 for each in learned)
    again = deploykit.transformers.QuantizationAwareTraining("x86-cpu", scales="learned", scales_lr=0.0)
    run = trainer(bert(), tmp_path, again, max_steps=4, save_strategy="no")
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [float(scale.detach()) for scale in again.trained.scales] == learned
    (tmp_path / "checkpoint-3" / SCALES).unlink()
    with pytest.raises(UsageError, match="learned scales are not at"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_the_loss_is_the_models_own(tmp_path: Path) -> None:
    qat, model = deploykit.transformers.QuantizationAwareTraining("x86-cpu"), bert()
    trainer(model, tmp_path, qat, max_steps=1, save_strategy="no").train()
    batch = {name: torch.stack([row[name] for row in data(4)]) for name in ("input_ids", "attention_mask", "labels")}
    from deploykit_training.huggingface.forward import LossForward

    qat.trained.attach(LossForward)
    result = model(**batch)
    wanted = torch.nn.functional.cross_entropy(result.logits, batch["labels"])
    assert torch.equal(result.loss, wanted) and type(result).__name__ == "SequenceClassifierOutput"
    result.loss.backward()
    qat.trained.detach()
    assert model(**batch).loss.isfinite()


@pytest.mark.nightly
def test_half_precision_trains_and_sharding_is_refused(tmp_path: Path) -> None:
    qat, model = deploykit.transformers.QuantizationAwareTraining("x86-cpu"), bert()
    run = trainer(model, tmp_path, qat, max_steps=1, save_strategy="no", bf16=True)
    run.train()
    run.model.zero_grad()
    quantised = qat.trained.prepared().simulation  # captured in float32, whatever accelerate made of forward
    assert quantised is not None
    assert run.state.global_step == 1 and bool(qat.trained.model.classifier.weight.isfinite().all())
    run.args.fsdp = ["full_shard"]
    with pytest.raises(UsageError, match="shard parameters"):
        qat.on_train_begin(run.args, run.state, run.control, model=model, train_dataloader=None)
