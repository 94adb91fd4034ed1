"""Config-only models of `transformers`, two layers of width 32: captured, normalised, equal (capture checks that)."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

from deploykit.capture import CapturedModel, capture
from deploykit.testing.models import seeded

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOKENS = torch.arange(2, 14).reshape(1, 12)
IMAGE = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
GPT2 = {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, torch.Tensor] | None]] = {
    "bert": ("BertModel", "BertConfig", {"vocab_size": 99, **SMALL}, None),
    "bert with mask": (
        "BertForSequenceClassification",
        "BertConfig",
        {"vocab_size": 99, **SMALL},
        {"input_ids": TOKENS, "attention_mask": (TOKENS < 11).long()},
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {"image_size": 32, "patch_size": 8, **SMALL},
        {"pixel_values": IMAGE},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, {"input_ids": TOKENS}),
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"vocab_size": 99, "num_key_value_heads": 2, **SMALL},
        {"input_ids": TOKENS},
    ),
    "t5": ("T5EncoderModel", "T5Config", T5, {"input_ids": TOKENS}),
    "swin": ("Swinv2ForImageClassification", "Swinv2Config", SWIN, {"pixel_values": IMAGE}),
    "convnext": (
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        {"image_size": 32, "hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
        {"pixel_values": IMAGE},
    ),
}

FORBIDDEN = {
    "diff",
    "index",
    "alias",
    "new_ones",
    "__and__",
    "addmm",
    "scaled_dot_product_attention",
    "view",
    "dropout",
}


@cache
def made(name: str, dynamic_batch: bool = False) -> tuple[Any, CapturedModel]:
    model, config, settings, example = MODELS[name]
    with warnings.catch_warnings(), seeded(0):
        warnings.simplefilter("ignore")  # transformers deprecates its own calls while importing
        module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return module, capture(module, example_inputs=example, dynamic_batch=dynamic_batch)


def ops(captured: CapturedModel) -> Counter[str]:
    return Counter(o.op.removeprefix("aten.").split(".")[0] for o in captured.origins.values())


@pytest.mark.parametrize("name", MODELS)
def test_captured_and_normalised(name: str) -> None:
    _, captured = made(name)
    assert not set(ops(captured)) & FORBIDDEN
    assert all(o.source for o in captured.origins.values())


@pytest.mark.parametrize("name", ["bert with mask", "vit", "gpt2"])
def test_dynamic_batch_adds_next_to_nothing(name: str) -> None:
    _, static = made(name)
    module, dynamic = made(name, True)
    assert len(dynamic.origins) <= len(static.origins) + 2  # a size and an expand for the class token
    feeds = {n: torch.cat([x, x.flip(-1), x]) for n, x in dynamic.example_feeds().items()}
    with torch.no_grad():
        want = module.eval()(**feeds).logits
    torch.testing.assert_close(dynamic.run(feeds)["logits"], want, rtol=1e-4, atol=1e-4)


def test_inputs_and_outputs_have_the_models_names() -> None:
    _, bert = made("bert")
    assert [str(s) for s in bert.inputs] == ["input_ids: int64[batch, sequence]"]  # from dummy_inputs
    assert [s.name for s in bert.outputs] == ["last_hidden_state", "pooler_output"]


def test_decoders_return_no_cache_and_keep_their_config() -> None:
    module, captured = made("gpt2")
    assert [s.name for s in captured.outputs] == ["logits"]
    assert module.config.use_cache


def test_conv1d_of_gpt2_is_a_linear_on_the_last_axis() -> None:
    counts = ops(made("gpt2")[1])
    assert (counts["linear"], counts["matmul"]) == (9, 4)


def test_batches_of_a_tokenizer_are_mapped() -> None:
    _, captured = made("bert with mask")
    batch = {"labels": torch.zeros(1), "input_ids": TOKENS, "attention_mask": TOKENS, "token_type_ids": TOKENS}
    assert list(captured.feeds(batch)) == ["input_ids", "attention_mask"]
