"""A zoo of tiny seeded models, one per family of networks, for conformance suites and tests.

Every function returns `(module, example_inputs)`: the module in eval mode with float32 weights, the inputs as a
tuple (positional) or a dict (by name). Running statistics of batch norms are random and far from (0, 1), so that a
forgotten or wrong fold shows. The global random state is left as it was. Torch is imported inside the functions:
this module may be imported where torch is not installed.
"""

# nn.Module.__call__ returns Any, so every forward below does.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    Example = tuple[nn.Module, tuple[Tensor, ...]]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch random numbers from `seed` inside the block; the caller's random state is untouched."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def randomise_batch_norms(module: nn.Module) -> nn.Module:
    """Give every batch norm random statistics, scale and shift, in place; returns the module in eval mode."""
    import torch
    from torch import nn

    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                if child.running_mean is not None and child.running_var is not None:
                    child.running_mean.normal_(0.0, 0.3)
                    child.running_var.uniform_(0.5, 2.0)
                if child.affine:
                    child.weight.uniform_(0.5, 1.5)
                    child.bias.normal_(0.0, 0.3)
    return module.eval()


def residual_cnn() -> Example:
    """A ResNet in small: stem, max pool, a basic block with identity and one with a strided 1x1 shortcut."""
    import torch
    from torch import nn

    class BasicBlock(nn.Module):
        def __init__(self, channels_in: int, channels: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.relu = nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
            self.downsample: nn.Module | None = None
            if stride != 1 or channels_in != channels:
                shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

        def forward(self, x: Tensor) -> Tensor:
            identity = x if self.downsample is None else self.downsample(x)
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += identity
            return self.relu(out)

    class ResidualCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            self.layer1 = BasicBlock(16, 16, 1)
            self.layer2 = BasicBlock(16, 32, 2)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.dropout = nn.Dropout(0.2)
            self.fc = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            x = self.layer2(self.layer1(x))
            return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))

    with seeded(0):
        return randomise_batch_norms(ResidualCNN()), (torch.randn(1, 3, 32, 32),)


def mobilenet_like() -> Example:
    """Inverted residuals with depthwise convolutions and ReLU6, as in MobileNetV2."""
    import torch
    from torch import nn

    class InvertedResidual(nn.Module):
        def __init__(self, channels_in: int, channels: int, stride: int, expand: int) -> None:
            super().__init__()
            hidden = channels_in * expand
            self.skip = stride == 1 and channels_in == channels
            self.conv = nn.Sequential(
                nn.Conv2d(channels_in, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(inplace=True),
                nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(inplace=True),
                nn.Conv2d(hidden, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            )

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x) if self.skip else self.conv(x)

    class MobileNetLike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
            blocks = [InvertedResidual(8, 8, 1, 4), InvertedResidual(8, 16, 2, 4), InvertedResidual(16, 16, 1, 4)]
            self.features = nn.Sequential(stem, *blocks)
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.features(x).mean([2, 3]))

    with seeded(1):
        return randomise_batch_norms(MobileNetLike()), (torch.randn(1, 3, 32, 32),)


def squeeze_excite_cnn() -> Example:
    """Depthwise convolution, hardswish and a hardsigmoid squeeze-excite gate, as in MobileNetV3."""
    import torch
    from torch import nn

    class SqueezeExcite(nn.Module):
        def __init__(self, channels: int, squeezed: int) -> None:
            super().__init__()
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc1 = nn.Conv2d(channels, squeezed, 1)
            self.relu = nn.ReLU(inplace=True)
            self.fc2 = nn.Conv2d(squeezed, channels, 1)
            self.gate = nn.Hardsigmoid(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gate(self.fc2(self.relu(self.fc1(self.avgpool(x)))))

    class SqueezeExciteCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(True))
            self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.Hardswish(True))
            self.depthwise = nn.Sequential(
                nn.Conv2d(24, 24, 5, 1, 2, groups=24, bias=False), nn.BatchNorm2d(24), nn.Hardswish(True)
            )
            self.squeeze_excite = SqueezeExcite(24, 8)
            self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
            self.head = nn.Sequential(nn.Conv2d(8, 32, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.classifier = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.project(self.squeeze_excite(self.depthwise(self.expand(x))))
            return self.classifier(self.head(x))

    with seeded(2):
        return randomise_batch_norms(SqueezeExciteCNN()), (torch.randn(1, 3, 32, 32),)


def concat_cnn() -> Example:
    """Parallel branches joined by a concat, with a shared ReLU and an average pool, as in Inception."""
    import torch
    from torch import nn

    class ConvBN(nn.Module):
        def __init__(self, channels_in: int, channels: int, kernel: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
            self.bn = nn.BatchNorm2d(channels, eps=1e-3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    class ConcatCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = ConvBN(3, 8, 3)
            self.branch1 = ConvBN(8, 8, 1)
            self.branch3 = ConvBN(8, 8, 3)
            self.branch_pool = ConvBN(8, 4, 1)
            self.relu = nn.ReLU()
            self.post_bn = nn.BatchNorm2d(20)
            self.fc = nn.Linear(20, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.stem(x))
            pooled = nn.functional.avg_pool2d(x, 3, 1, 1)
            branches = [self.branch1(x), self.branch3(x), self.branch_pool(pooled)]
            x = torch.cat([self.relu(branch) for branch in branches], dim=-3)
            x = nn.functional.max_pool2d(self.post_bn(x), 2)
            return self.fc(x.mean((-1, -2)))

    with seeded(3):
        return randomise_batch_norms(ConcatCNN()), (torch.randn(1, 3, 24, 24),)


def unet_like() -> Example:
    """Encoder and decoder with pools, transposed convolutions, bilinear resize and skip concats; output 1x2x32x32."""
    import torch
    from torch import nn

    def double_conv(channels_in: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    class UNetLike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down1 = double_conv(3, 8)
            self.down2 = double_conv(8, 16)
            self.bottom = double_conv(16, 16)
            self.up = nn.Sequential(nn.ConvTranspose2d(16, 16, 2, stride=2, bias=False), nn.BatchNorm2d(16))
            self.up2 = double_conv(32, 8)
            self.resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            self.up1 = double_conv(16, 8)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            one = self.down1(x)
            two = self.down2(nn.functional.max_pool2d(one, 2))
            three = self.bottom(nn.functional.max_pool2d(two, 2))
            two = self.up2(torch.cat([self.up(three), two], 1))
            return self.head(self.up1(torch.cat([self.resize(two), one], 1)))

    with seeded(4):
        return randomise_batch_norms(UNetLike()), (torch.randn(1, 3, 32, 32),)


def mlp() -> Example:
    """Three linear layers with a batch norm and a GELU on 32 features; batch of 4."""
    import torch
    from torch import nn

    with seeded(5):
        layers = nn.Sequential(
            nn.Linear(32, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(64, 64),
            nn.GELU(),
            nn.Linear(64, 10),
        )
        return randomise_batch_norms(layers), (torch.randn(4, 32),)


def _recurrent_classifier(kind: str, seed: int) -> Example:
    import torch
    from torch import nn

    class RecurrentClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(nn, kind)(12, 16, num_layers=2, batch_first=True, bidirectional=kind == "LSTM")
            self.fc = nn.Linear(32 if kind == "LSTM" else 16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(x)[0][:, -1])

    with seeded(seed):
        return RecurrentClassifier().eval(), (torch.randn(1, 10, 12),)


def lstm_classifier() -> Example:
    """A two-layer bidirectional LSTM over 10 steps of 12 features; the last step is classified."""
    return _recurrent_classifier("LSTM", 6)


def gru_classifier() -> Example:
    """A two-layer GRU over 10 steps of 12 features; the last step is classified."""
    return _recurrent_classifier("GRU", 7)


def transformer_encoder() -> Example:
    """Token embedding, learned positions and two pre-norm encoder blocks written with plain matmuls; batch of 1."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm1 = nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width)
            self.out = nn.Linear(width, width)
            self.norm2 = nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def attend(self, x: Tensor) -> Tensor:
            batch, length, width = x.shape
            split = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            out = nn.functional.scaled_dot_product_attention(split[0], split[1], split[-1])
            return self.out(out.transpose(1, 2).reshape(batch, length, width))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attend(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class TransformerEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(64, 32)
            self.positions = nn.Parameter(torch.randn(1, 16, 32) * 0.1)
            self.blocks = nn.ModuleList([Block(32, 4) for _ in range(2)])
            self.norm = nn.LayerNorm(32)
            self.fc = nn.Linear(32, 6)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens) + self.positions[:, : tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.fc(self.norm(x).mean(dim=1))

    with seeded(8):
        return TransformerEncoder().eval(), (torch.randint(0, 64, (1, 16)),)


def two_inputs_dict_output() -> tuple[nn.Module, dict[str, Tensor]]:
    """An image and a feature vector in, a dict of `scores` and `embedding` out; example inputs by name."""
    import torch
    from torch import nn

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)
            self.bn = nn.BatchNorm2d(8)
            self.side = nn.Linear(4, 8)
            self.fc = nn.Linear(16, 3)

        def forward(self, image: Tensor, features: Tensor) -> dict[str, Tensor]:
            pooled = nn.functional.relu(self.bn(self.conv(image))).mean((2, 3))
            embedding = torch.cat([pooled, torch.tanh(self.side(features))], dim=-1)
            return {"scores": self.fc(embedding), "embedding": embedding}

    with seeded(9):
        return randomise_batch_norms(TwoInputs()), {"image": torch.randn(1, 3, 16, 16), "features": torch.randn(1, 4)}


ZOO: dict[str, Callable[[], tuple[Any, Any]]] = {
    factory.__name__: factory
    for factory in (
        residual_cnn,
        mobilenet_like,
        squeeze_excite_cnn,
        concat_cnn,
        unet_like,
        mlp,
        lstm_classifier,
        gru_classifier,
        transformer_encoder,
        two_inputs_dict_output,
    )
}
"""Every model of the zoo by name."""
