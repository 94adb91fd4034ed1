"""The networks of `ladder.py`, seeded, and their samples. PyTorch and transformers alone: peers make them again.

Architectures are those of ViT, Swin, ConvNeXt, LSTM, Llama and BERT at sizes that a CPU searches in a minute; large
ones are ViT-B/16, Swin-T, ConvNeXt-T of images of 224 and BERT-base of 128 tokens. MobileNetV2 is whole in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import models
import torch
from torch import Tensor, nn

SAMPLES, FRESH = 24, 16
JUDGED = 8
"""Of the samples, what peers judge their candidates by; they calibrate with the others."""


@dataclass(frozen=True)
class Network:
    """A model of one input, samples for whoever quantises it, and others that nothing but the last judgement sees."""

    model: nn.Module
    samples: list[Tensor]
    fresh: list[Tensor]


Drawn = tuple[list[Tensor], list[Tensor]]


class Logits(nn.Module):
    """The scores of a model that returns a record."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)[0]
        return found


class Recurrent(nn.Module):
    """Two LSTM layers and a classifier of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 128, 2, batch_first=True), nn.Linear(128, 100)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(x)[0][:, -1])
        return found


def _both(draw: Callable[[int, torch.Generator], list[Tensor]]) -> Drawn:
    return draw(SAMPLES, torch.Generator().manual_seed(3)), draw(FRESH, torch.Generator().manual_seed(9))


def _images(size: int) -> Drawn:
    made = (models.images(SAMPLES, size, seed=3), models.images(FRESH, size, seed=9))
    return [image[None] for image in made[0]], [image[None] for image in made[1]]


def _tokens(vocabulary: int, length: int) -> Drawn:
    return _both(lambda count, seeded: list(torch.randint(0, vocabulary, (count, 1, length), generator=seeded)))


def vit(large: bool) -> Network:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    config = ViTConfig(num_labels=1000) if large else ViTConfig(image_size=64, num_labels=1000, **small)
    return Network(Logits(ViTForImageClassification(config)), *_images(config.image_size))


def swin(large: bool) -> Network:
    from transformers import SwinConfig, SwinForImageClassification

    small = {"embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4}
    config = SwinConfig(num_labels=1000) if large else SwinConfig(image_size=64, num_labels=1000, **small)
    return Network(Logits(SwinForImageClassification(config)), *_images(config.image_size))


def convnext(large: bool) -> Network:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    small = {"depths": [2, 2, 4, 2], "hidden_sizes": [48, 96, 192, 384]}
    config = ConvNextConfig(num_labels=1000) if large else ConvNextConfig(image_size=64, num_labels=1000, **small)
    return Network(Logits(ConvNextForImageClassification(config)), *_images(config.image_size))


def lstm(large: bool) -> Network:
    del large
    return Network(Recurrent(), *_both(lambda count, seeded: list(torch.randn(count, 1, 24, 64, generator=seeded))))


def llama(large: bool) -> Network:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8} if large else {
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4}  # fmt: skip
    config = LlamaConfig(vocab_size=1000, num_attention_heads=4, num_key_value_heads=2, use_cache=False, **sizes)
    return Network(Logits(LlamaForCausalLM(config)), *_tokens(1000, 32))


def bert(large: bool) -> Network:
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    config = BertConfig() if large else BertConfig(**small)
    return Network(Logits(BertForSequenceClassification(config)), *_tokens(30522, 128 if large else 64))


def mobilenet(large: bool) -> Network:
    del large
    return Network(models.mobilenet_v2()[0], *_images(224))


MAKERS: Mapping[str, Callable[[bool], Network]] = {
    "vit": vit, "swin": swin, "convnext": convnext, "lstm": lstm, "llama": llama, "bert": bert, "mobilenet": mobilenet,
}  # fmt: skip


def network(name: str, large: bool) -> Network:
    """A network by name; the same weights every time."""
    torch.manual_seed(0)
    made = MAKERS[name](large)
    made.model.eval()
    return made
