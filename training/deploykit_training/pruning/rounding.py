"""Multiples of channels that a target's kernels are made for: what lies between is computed and thrown away.

Only what a runtime's own source or manual says is here; for other toolchains 8, the lanes of a 256-bit register of
float32, are taken.
"""

from __future__ import annotations

CHANNELS = {
    "onnxruntime": 16,  # MLAS blocks channels by 16 with AVX-512, by 8 without (MlasNchwcGetBlockSize)
    "openvino": 16,  # oneDNN's formats nChw16c and nChw8c
    "aotinductor": 16,  # convolutions are oneDNN's
    "tensorrt": 32,  # TensorFormat::kCHW32: int8 channels are padded to 32
    "tensorrt-rtx": 32,  # same
}
DEFAULT = 8


def round_to_of(target: str) -> int:
    """The multiple for a target: a device, a toolchain, or both, as `deploykit.export` takes them.

    Raises:
        UnknownTargetError: there is none of that name.
    """
    from deploykit.plugin.registry import resolve

    return CHANNELS.get(resolve(target).target.name, DEFAULT)
