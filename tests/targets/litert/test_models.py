"""Families of networks in every precision that makes sense for them: all convert, and what misses its gate says so.

Models are captured once per family and converted in one process, so that the many files cost little.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import deploykit
from deploykit.judge.parity import Tolerance
from deploykit.plugin.artifact import Artifact
from deploykit.testing import models
from deploykit.testing.conformance import batches

pytestmark = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")

CNNS = ("residual_cnn", "mobilenet_like", "squeeze_excite_cnn", "concat_cnn", "unet_like")
OTHERS = ("transformer_encoder", "mlp", "two_inputs_dict_output", "bert_like")
RECURRENT = ("lstm_classifier", "gru_classifier")
AT_NIGHT = ("squeeze_excite_cnn", "concat_cnn", "two_inputs_dict_output", "unet_like")
"""Families that `test_delegation` and `test_files` convert by day."""
FROM_FLOAT = ("fp32", "fp16", "int8-dynamic", "int8-weight-only", "int16x8")  # all from one float file


def by_day(names: tuple[str, ...], *at_night: str) -> list[Any]:
    """Families as parameters; those that are named, and those that others convert, are `nightly`."""
    late = {*AT_NIGHT, *at_night}
    return [pytest.param(name, marks=pytest.mark.nightly) if name in late else name for name in names]


def bert_like() -> tuple[Any, Any]:
    """BERT from its configuration alone: 2 layers of width 64, length 16, with a mask."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    class Logits(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[no-any-return]

    with models.seeded(0):
        size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        config = BertConfig(vocab_size=100, max_position_embeddings=32, attn_implementation="eager", **size)
        example = {
            "input_ids": torch.randint(0, 100, (1, 16)),
            "attention_mask": torch.ones(1, 16, dtype=torch.int64),
        }
        return Logits(BertForSequenceClassification(config)).eval(), example


ZOO: dict[str, Callable[[], tuple[Any, Any]]] = {**models.ZOO, "bert_like": bert_like}


def export(name: str, precision: str, output: Path, **changes: Any) -> Artifact:
    module, example_inputs = ZOO[name]()
    return deploykit.export(
        module,
        "android",
        precision,
        example_inputs=example_inputs,
        calibration=batches(example_inputs, 8) if precision in ("int8", "int16x8") else None,
        output=output,
        profile=False,
        progress=False,
        **changes,
    )


@pytest.mark.parametrize("name", by_day((*CNNS, *OTHERS, "lstm_classifier"), "transformer_encoder", "lstm_classifier"))
def test_all_precisions_from_one_float_file_pass_their_gates(name: str, tmp_path: Path) -> None:
    sizes = {}
    for precision in FROM_FLOAT:
        if name in RECURRENT and precision == "int16x8":
            with pytest.raises(deploykit.PlacementError, match="no 16-bit kernel"):
                export(name, precision, tmp_path / precision)
            continue
        artifact = export(name, precision, tmp_path / precision)
        assert artifact.status == "verified"
        assert not any(layer.precision == "unknown" for layer in artifact.achieved.layers), precision
        sizes[precision] = artifact.entry.stat().st_size
    assert sizes["fp16"] < sizes["fp32"] and sizes["int8-weight-only"] < sizes["fp32"]


@pytest.mark.parametrize("name", by_day((*CNNS, *OTHERS), "bert_like"))
def test_static_int8_passes_its_gate_with_all_its_products_in_int8(name: str, tmp_path: Path) -> None:
    artifact = export(name, "int8", tmp_path / "a")
    assert artifact.status == "verified"
    floats = [layer for layer in artifact.achieved.layers if layer.macs and layer.precision != "int8"]
    assert {layer.op for layer in floats} <= {"conv_transpose"} and all(layer.reason for layer in floats)


@pytest.mark.parametrize("name", by_day(RECURRENT, "gru_classifier"))
def test_the_steps_of_a_recurrent_network_are_rounded_when_they_run(name: str, tmp_path: Path) -> None:
    """The converter writes them out, and gives no step a range: what they read is rounded as `int8-dynamic` does."""
    artifact = export(name, "int8", tmp_path / "a")
    assert artifact.status == "verified" and artifact.achieved.macs_fraction("int8") == 1.0
    assert artifact.parity is not None and artifact.parity.quantization is not None
    assert artifact.parity.sqnr_db == pytest.approx(artifact.parity.quantization.worst.sqnr_db, abs=1.0)


def test_missed_parity_of_a_transformer_names_layers_and_int8_dynamic(tmp_path: Path) -> None:
    with pytest.raises(deploykit.ParityError) as caught:
        export("transformer_encoder", "int8", tmp_path / "a", tolerance=Tolerance(min_sqnr_db=60.0))
    assert "blocks." in str(caught.value) and "int8-dynamic" in str(caught.value)
    assert caught.value.candidate is not None and caught.value.candidate.status == "failed"
