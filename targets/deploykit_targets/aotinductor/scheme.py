"""Which quantization scheme PyTorch's compiler gets on this machine's CPU."""

from __future__ import annotations

from dataclasses import replace

from deploykit.contract.host import Host
from deploykit.contract.scheme import INT8_IN_OUT, Scheme, no_kernel, with_rules
from deploykit_targets._schemes.x86 import ONNX_X86

# PyTorch's compiler gives convolution and linear to oneDNN, which adds a float bias and may write float; products of
# two activations stay float there.
AOTINDUCTOR = replace(
    ONNX_X86,
    name="aotinductor",
    bias="float",
    rules=with_rules(ONNX_X86, conv=INT8_IN_OUT, matmul=no_kernel("matmul")),
)
AOTINDUCTOR_NO_VNNI = replace(AOTINDUCTOR, name="aotinductor-no-vnni", reduce_range=True)


def scheme_of(host: Host) -> Scheme:
    """The scheme for the CPU that compiles; without VNNI, weights of 7 bits keep 16-bit sums from saturating."""
    return AOTINDUCTOR if host.has("vnni") else AOTINDUCTOR_NO_VNNI
