"""What users pass as a model: factories by name, exported programs, Lightning modules; and the data models bring."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import calibration_source, capture
from deploykit.contract.errors import CalibrationError, CaptureError, UsageError
from deploykit.testing.models import mlp, residual_cnn

FACTORIES = """
import torch
from torch import nn

ready = nn.Linear(4, 2)
def alone(): return nn.Linear(4, 2)
def with_inputs(): return nn.Linear(4, 2), (torch.ones(1, 4),)
def fails(): raise ValueError("no weights here")
def number(): return 3
class Holder:
    make = staticmethod(with_inputs)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Name of a module with factories in the working directory (not on sys.path)."""
    name = f"factories_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("attribute", ["with_inputs", "Holder.make"])
def test_factory_in_the_working_directory(factories: str, attribute: str) -> None:
    captured = capture(f"{factories}:{attribute}")
    assert [str(s) for s in captured.inputs] == ["input: float32[1, 4]"]


def test_factory_without_inputs_takes_those_given(factories: str) -> None:
    captured = capture(f"{factories}:alone", example_inputs=(torch.ones(3, 4),))
    assert captured.inputs[0].shape == (3, 4)
    assert capture(f"{factories}:ready", example_inputs=torch.ones(3, 4)).inputs[0].shape == (3, 4)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("fails", "failed when called: ValueError: no weights here"),
        ("absent", "has no 'absent'"),
        ("number", "gives an object of type int, and no model"),
        ("alone", r"pass example_inputs=.*\(input\)"),
    ],
)
def test_factories_that_do_not_serve(factories: str, attribute: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        capture(f"{factories}:{attribute}")


@pytest.mark.parametrize(
    ("text", "message"), [("nowhere_at_all:f", "cannot be imported"), ("justname", "not of the form")]
)
def test_names_that_lead_nowhere(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        capture(text)


def test_exported_program_brings_its_inputs_and_dynamic_axes() -> None:
    module, (x,) = mlp()
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=9)},))
    captured = capture(program)
    assert [str(s) for s in captured.inputs] == ["input: float32[batch, 32]"]
    assert captured.symbol_ranges == {"batch": (1, 9)}
    with torch.no_grad():
        torch.testing.assert_close(captured.run({"input": x[:3]})["output"], module(x[:3]), rtol=1e-5, atol=1e-5)


def test_exported_program_in_training_mode_is_refused() -> None:
    module, example = residual_cnn()
    program = torch.export.export(module.train(), example)
    with pytest.raises(CaptureError, match=r"writes into the buffer 'bn1\.num_batches_tracked'"):
        capture(program)


@pytest.mark.parametrize("name", ["residual_cnn", "unet_like", "transformer_encoder"])
def test_decomposed_program_gives_the_same_ops_as_the_module(zoo: Any, name: str) -> None:
    module, example, captured = zoo(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own copying of tree specs
        program = torch.export.export(module, example).run_decompositions()

    def macs(ops: Any) -> Counter[str]:
        return Counter(
            o.op for o in ops.values() if any(k in o.op for k in ("conv", "linear", "matmul", "norm", "soft"))
        )

    assert macs(capture(program).origins) == macs(captured.origins)


LOADER = [torch.ones(2, 4)]


class WithInputs(nn.Linear):
    """As a LightningModule offers its inputs and data."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.example_input_array = torch.ones(1, 4)

    def val_dataloader(self) -> Any:
        return LOADER


def test_example_input_array_and_val_dataloader() -> None:
    assert capture(WithInputs()).inputs[0].shape == (1, 4)
    assert calibration_source(WithInputs()) is LOADER


def test_calibration_dataloader_comes_first_and_failures_are_told() -> None:
    class Both(WithInputs):
        def calibration_dataloader(self) -> Any:
            return ["calibration"]

    class Broken(WithInputs):
        def val_dataloader(self) -> Any:
            raise RuntimeError("setup first")

    assert calibration_source(Both()) == ["calibration"]
    assert calibration_source(nn.Linear(4, 2)) is None
    with pytest.raises(CalibrationError, match=r"Broken.val_dataloader\(\) failed: RuntimeError: setup first"):
        calibration_source(Broken())


def test_lightning_module_is_captured_away_from_its_trainer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightning's imports deprecate
        lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            self.example_input_array = torch.ones(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return self(batch).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Net()
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
    module.trainer = trainer
    captured = capture(module)
    assert module.trainer is trainer
    assert module.training
    assert [s.shape for s in captured.outputs] == [(1, 2)]
    assert calibration_source(module) is None


class Dummies(torch.nn.Module):
    """Made-up inputs as Hugging Face models bring them, and a position table that bounds the sequence."""

    main_input_name = "input_ids"

    def __init__(self, fixed: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.words, self.places = torch.nn.Embedding(9, 4), torch.nn.Embedding(16, 4)
        self.fixed = fixed

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.arange(15).reshape(3, 5) % 9}

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        for axis, size in enumerate(self.fixed):
            assert size is None or input_ids.shape[axis] == size
        places = self.places.weight[: input_ids.shape[1]]
        return self.words(input_ids) + places


def test_dummy_inputs_freeze_nothing() -> None:
    captured = capture(Dummies())
    assert [str(s) for s in captured.inputs] == ["input_ids: int64[batch, sequence]"]
    assert captured.symbol_ranges["batch"] == (1, None) and captured.symbol_ranges["sequence"][0] == 1
    (remark,) = captured.remarks
    assert "dummy_inputs" in remark and "batch and sequence may have any size" in remark and "example_inputs=" in remark
    for shape in ((1, 1), (2, 9)):
        (output,) = captured.run({"input_ids": torch.zeros(shape, dtype=torch.int64)}).values()
        assert output.shape == (*shape, 4)


@pytest.mark.parametrize(
    ("fixed", "shape"), [((None, 5), "int64[batch, 5]"), ((3, 5), "int64[3, 5]")], ids=["sequence", "both"]
)
def test_what_the_model_fixes_stays_fixed(fixed: tuple[int, ...], shape: str) -> None:
    captured = capture(Dummies(fixed))
    assert [str(s) for s in captured.inputs] == [f"input_ids: {shape}"]
    assert ("no other sizes" in captured.remarks[0]) == (fixed == (3, 5))


def test_who_chooses_is_not_overruled() -> None:
    static = capture(Dummies(), example_inputs={"input_ids": torch.ones(2, 4, dtype=torch.int64)})
    assert static.inputs[0].shape == (2, 4) and not static.remarks
    batch = capture(Dummies(), dynamic_batch=True)
    assert batch.inputs[0].shape == ("batch", 5) and not batch.remarks


def test_axes_have_the_names_that_are_given() -> None:
    captured = capture(Dummies(), dynamic_shapes={"input_ids": {0: "rows", 1: "words"}})
    assert captured.inputs[0].shape == ("rows", "words")
    with pytest.raises(UsageError, match="names no axis"):
        capture(Dummies(), dynamic_shapes={"input_ids": {0: "two words"}})
