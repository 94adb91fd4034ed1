"""The models that all benchmarks share: the usual architectures, seeded random weights, no downloads.

Batch-norm statistics are set by running seeded images through the network in training mode, layer after layer, so
that activations have the spread of a trained network instead of exploding or dying with depth.
"""

# nn.Module.__call__ returns Any, so every forward below does.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Example = tuple[nn.Module, tuple[Tensor, ...]]


def conv_norm(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias that keeps the size at stride 1, and its batch norm."""
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class ResidualBlock(nn.Module):
    """ResNet's block: basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1), with a 1x1 shortcut where the shape changes."""

    def __init__(self, channels_in: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        channels = width * (4 if bottleneck else 1)
        if bottleneck:
            layers = [*conv_norm(channels_in, width, 1), nn.ReLU(), *conv_norm(width, width, 3, stride), nn.ReLU()]
            layers += conv_norm(width, channels, 1)
        else:
            layers = [*conv_norm(channels_in, width, 3, stride), nn.ReLU(), *conv_norm(width, width, 3)]
        self.body = nn.Sequential(*layers)
        changes = stride != 1 or channels_in != channels
        self.shortcut = nn.Sequential(*conv_norm(channels_in, channels, 1, stride)) if changes else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))

    def branch_norm(self) -> nn.Module:
        """The batch norm at the end of the residual branch."""
        return self.body[-1]


class ResNet(nn.Module):
    """ResNet for 224 x 224 images (He et al. 2015, with the stride on the 3x3 convolution)."""

    def __init__(self, blocks: tuple[int, int, int, int], *, bottleneck: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        stages: list[nn.Module] = []
        channels = 64
        for stage, count in enumerate(blocks):
            width = 64 << stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                stages.append(ResidualBlock(channels, width, stride, bottleneck=bottleneck))
                channels = width * (4 if bottleneck else 1)
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.stages(self.stem(x))), 1))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise 3x3, project; added to its input where the shape allows."""

    def __init__(self, channels_in: int, channels: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels_in * expand
        layers = [*conv_norm(channels_in, hidden, 1), nn.ReLU6()] if expand != 1 else []
        layers += [*conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(), *conv_norm(hidden, channels, 1)]
        self.body = nn.Sequential(*layers)
        self.adds = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)

    def branch_norm(self) -> nn.Module:
        """The batch norm at the end of the residual branch, or of the block where nothing is added."""
        return self.body[-1]


class MobileNetV2(nn.Module):
    """MobileNetV2, width 1.0 (Sandler et al. 2018)."""

    # expansion, channels, repeats, stride of the first
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*conv_norm(3, 32, 3, 2), nn.ReLU6()]
        channels_in = 32
        for expand, channels, repeats, first in self.STAGES:
            for index in range(repeats):
                layers.append(InvertedResidual(channels_in, channels, first if index == 0 else 1, expand))
                channels_in = channels
        self.features = nn.Sequential(*layers, *conv_norm(channels_in, 1280, 1), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def _settle(model: nn.Module, size: int, seed: int, branch_norms: Callable[[nn.Module], Iterator[Any]]) -> nn.Module:
    """Seeded He initialisation, random scale and shift, and batch-norm statistics that fit them; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0.0, 0.2, generator=generator)
                module.momentum = None  # a plain average: one batch sets the statistics
        for norm in branch_norms(model):
            # Trained branches correct their input a little; branches as strong as it make a network chaotic.
            norm.weight.mul_(0.3)
        model.train()
        model(images(8, size, seed=seed))
        _scale_logits(model.eval(), images(8, size, seed=seed + 1))
    return model.requires_grad_(False)


def _own_branch_norms(model: nn.Module) -> Iterator[Any]:
    """The batch norms at the ends of the residual branches of this module's networks."""
    for block in model.modules():
        if isinstance(block, ResidualBlock) or (isinstance(block, InvertedResidual) and block.adds):
            yield block.branch_norm()


def _efficientnet_branch_norms(model: nn.Module) -> Iterator[Any]:
    """The same of EfficientNet's in transformers, which adds where it would drop paths."""
    for block in model.modules():
        if getattr(block, "apply_dropout", False):
            yield block.project_bn


def _scale_logits(model: nn.Module, batch: Tensor) -> None:
    """Give the logits deviation 2. Their common part stays: without it, what is left of a random network's logits is
    a difference of nearly equal features, 6 to 10 dB more sensitive to any rounding than a trained network's.
    """
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    scale = 2.0 / model(batch).std()
    classifier.weight.mul_(scale)
    classifier.bias.mul_(scale)


def _image_model(
    make: Callable[[], nn.Module],
    size: int,
    seed: int,
    branch_norms: Callable[[nn.Module], Iterator[Any]] = _own_branch_norms,
) -> Example:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _settle(make(), size, seed, branch_norms)
    return model, (images(1, size),)


def resnet50(size: int = 224) -> Example:
    """25.6 M parameters, 4.1 GMAC per image at 224."""
    return _image_model(partial(ResNet, (3, 4, 6, 3), bottleneck=True), size, 50)


def resnet18(size: int = 224) -> Example:
    """11.7 M parameters, 1.8 GMAC per image at 224."""
    return _image_model(partial(ResNet, (2, 2, 2, 2), bottleneck=False), size, 18)


def mobilenet_v2(size: int = 224) -> Example:
    """3.5 M parameters, 0.3 GMAC per image at 224."""
    return _image_model(MobileNetV2, size, 2)


def efficientnet_b0(size: int = 224, *, settled: bool = False) -> Example:
    """5.3 M parameters, 0.4 GMAC per image at 224, from its configuration alone.

    Args:
        settled: its residual branches are as weak as those of the other networks here; else as strong as what they are
            added to, and the network is chaotic: 5 to 8 dB in int8.
    """
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    def make() -> nn.Module:
        config = EfficientNetConfig(image_size=size, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280)
        model = EfficientNetForImageClassification(config)
        model.efficientnet.pooler = nn.AdaptiveAvgPool2d(1)  # its own has a window of 1280 x 1280
        return ImageLogits(model)

    return _image_model(make, size, 5, _efficientnet_branch_norms if settled else _own_branch_norms)


def bert_base(length: int = 128) -> Example:
    """110 M parameters, from its configuration alone; (input_ids, attention_mask) -> logits of two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = BertForSequenceClassification(BertConfig()).eval().requires_grad_(False)
    return TextLogits(model), token_batches(1, length)[0]


class EncoderLayer(nn.Module):
    """A layer of BERT (Devlin et al. 2018; normalised after each half) or of ViT (before), without dropout."""

    def __init__(self, width: int, heads: int, *, norm_first: bool) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, half in zip(self.norms, (self.attend, self.widen), strict=True):
            x = x + half(norm(x)) if self.norm_first else norm(x + half(x))
        return x

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        parts = [part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value)]
        return self.out(nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(x.shape))

    def widen(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class VisionTransformer(nn.Module):
    """ViT with patches of 16 x 16 and a class token (Dosovitskiy et al. 2020)."""

    def __init__(self, width: int, heads: int, layers: int, size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // 16) ** 2 + 1, width) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, norm_first=True) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def bert_encoder(length: int = 128) -> Example:
    """Six layers of BERT-base between its embeddings and its head, 43 M parameters; float32 (1, length, 768)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = nn.Sequential(*(EncoderLayer(768, 12, norm_first=False) for _ in range(6)))
    return model.eval().requires_grad_(False), (hidden_states(1, length)[0],)


def vit_small(size: int = 224) -> Example:
    """ViT-S/16, 22 M parameters, 4.6 GMAC per image at 224."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(16)
        model = VisionTransformer(384, 6, 12, size)
    return model.eval().requires_grad_(False), (images(1, size),)


class LastStep(nn.Module):
    """Two recurrent layers of 256 over a sequence of 128 features, and 32 classes of its last step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers, self.head = getattr(nn, kind)(128, 256, 2, batch_first=True), nn.Linear(256, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


def lstm(length: int = 32) -> Example:
    """0.9 M parameters; float32 (1, length, 128)."""
    return _recurrent("LSTM", length)


def gru(length: int = 32) -> Example:
    """0.7 M parameters; float32 (1, length, 128)."""
    return _recurrent("GRU", length)


def _recurrent(kind: str, length: int) -> Example:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        model = LastStep(kind)
    return model.eval().requires_grad_(False), (sequences(1, length)[0],)


class TextLogits(nn.Module):
    """A text classifier's logits alone, instead of the library's output object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class ImageLogits(nn.Module):
    """An image classifier's logits alone, instead of the library's output object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def images(count: int, size: int = 224, *, seed: int = 0) -> Tensor:
    """Seeded images with structure at every scale, normalised; float32, shape (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, size, size)
    for scale in (1, 4, 16, 56):
        side = max(size // scale, 1)
        noise = torch.randn(count, 3, side, side, generator=generator)
        total += nn.functional.interpolate(noise, size=(size, size), mode="nearest") * scale**0.25
    return total / total.std(dim=(1, 2, 3), keepdim=True)


def hidden_states(count: int, length: int = 128, *, seed: int = 0) -> list[Tensor]:
    """Seeded embeddings as a layer normalisation leaves them, each float32 (1, length, 768)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, length, 768, generator=generator) for _ in range(count)]


def sequences(count: int, length: int = 32, *, seed: int = 0) -> list[Tensor]:
    """Seeded sequences of 128 normal features, each float32 (1, length, 128)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, length, 128, generator=generator) for _ in range(count)]


def token_batches(count: int, length: int = 128, *, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Seeded token ids with full attention; each (int64 (1, length), int64 (1, length))."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(1, length, dtype=torch.int64)
    return [(torch.randint(0, 30522, (1, length), generator=generator), ones) for _ in range(count)]


MODELS: dict[str, Callable[[], Example]] = {
    "resnet50": resnet50,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
    "bert_base": bert_base,
    "bert_encoder": bert_encoder,
    "vit_small": vit_small,
}
