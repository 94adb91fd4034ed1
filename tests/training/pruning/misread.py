"""Small networks whose channels are tied together in ways that a pruner misreads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """Batch norms, a residual connection, a depthwise layer, a head: what most networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b, self.nb = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.c, self.nc = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.o = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        y = self.na(self.a(x)).relu()
        y = y + self.nc(self.c(self.nb(self.b(y)).relu()))
        return self.o(y.relu().mean((2, 3)))


class Folded(nn.Module):
    """`chunk` couples a channel with another of the same layer, and a buffer has one value for each channel."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 4, 1)
        self.register_buffer("scale", torch.rand(24, 1, 1))

    def forward(self, x: Any) -> Any:
        u, v = self.a(x).chunk(2, 1)
        return self.o(self.b(u * v.sigmoid()) * self.scale)


class Flags(nn.Module):
    """A per-channel buffer that is no number, and one that is no buffer."""

    flags: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.register_buffer("flags", torch.arange(16) % 3 > 0)
        self.loose = torch.rand(16)

    def forward(self, x: Any) -> Any:
        return self.o(self.c((self.b((self.a(x) * self.flags).relu()) * self.loose).relu()).relu())


class Functional(nn.Module):
    """A convolution that is a function, and one weight that two layers have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Conv2d(3, 16, 3), nn.Parameter(torch.randn(24, 16, 3, 3) / 12)
        self.b, self.c = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 24, 1)
        self.c.weight = self.b.weight
        self.d, self.o = nn.Conv2d(24, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Any) -> Any:
        y = F.conv2d(self.a(x).relu(), self.w).relu()
        return self.o(self.d(self.c(self.b(y).relu()).relu()).relu())


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Any) -> Any:
        return self.o(self.b(self.b(self.a(x).relu()).relu()).relu())


class Grouped(nn.Module):
    """Groups of a convolution, of a norm, and a shuffle between groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.n = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 1, groups=4), nn.GroupNorm(4, 32)
        self.s, self.c, self.o = nn.Conv2d(32, 32, 1, groups=2), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Any) -> Any:
        y = self.s(self.n(self.g(self.a(x).relu())).relu())
        n, c, h, w = y.shape
        return self.o(self.c(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).relu()).relu())


class Attention(nn.Module):
    """Heads by hand, heads of a module, and the wide layers between them."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.q, self.k, self.v, self.p = nn.Linear(8, 32), *(nn.Linear(32, 32) for _ in range(4))
        self.m, self.n = nn.MultiheadAttention(32, 4, batch_first=True), nn.LayerNorm(32)
        self.f, self.g, self.o = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x: Any) -> Any:
        y = self.i(x)
        n, t, c = y.shape
        q, k, v = (layer(y).view(n, t, 4, c // 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = y + self.p(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        y = y + self.m(y, y, y, need_weights=False)[0]
        return self.o(y + self.g(F.gelu(self.f(self.n(y)))))


class Centred(nn.Module):
    """Every channel has a say in every other: removing one is more than masking it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Any) -> Any:
        y = self.a(x)
        return self.o(self.b((y - y.mean(1, keepdim=True)).relu()).relu())


class Normed(nn.Module):
    """A layer norm over the very channels that are removed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.o = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Any) -> Any:
        y = self.a(x)
        return self.o(y + self.b(self.n(y)).relu())


class QuietHeads(nn.Module):
    """Heads by their size, so that any number of channels can be cut into some, and weights too small to show it.

    A norm with a forward of its own, as ConvNeXt has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.i, self.q, self.k, self.v, self.p = nn.Linear(8, 32), *(nn.Linear(32, 32) for _ in range(4))
        self.n, self.f, self.o = OwnNorm(32), nn.Linear(32, 32), nn.Linear(32, 4)
        for layer in (self.q, self.k, self.v):
            nn.init.normal_(layer.weight, std=1e-3)

    def forward(self, x: Any) -> Any:
        y = self.i(x)
        n, t, _ = y.shape
        q, k, v = (layer(y).view(n, t, -1, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = y + self.p(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))
        return self.o(self.f(self.n(y).relu()).relu())


class OwnNorm(nn.LayerNorm):
    def forward(self, x: Any) -> Any:
        return super().forward(x.transpose(1, 2).transpose(1, 2))


class SharedKeys(nn.Module):
    """Keys and values that several queries share, as Llama repeats them: a walk over them may never end."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.q, self.k, self.v = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.p, self.f, self.g, self.o = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x: Any) -> Any:
        y = self.i(x)
        for _ in range(2):
            n, t, c = y.shape
            q = self.q(y).view(n, t, 4, 8).transpose(1, 2)
            k, v = (layer(y).view(n, t, 2, 8).transpose(1, 2) for layer in (self.k, self.v))
            k, v = (z[:, :, None].expand(n, 2, 2, t, 8).reshape(n, 4, t, 8) for z in (k, v))
            attended = (q @ k.transpose(2, 3) * 8**-0.5).softmax(-1) @ v
            y = y + self.p(attended.transpose(1, 2).reshape(n, t, c))
        return self.o(y + self.g(self.f(y).relu()))
