"""Which quantization scheme PyTorch's compiler gets on this machine's CPU."""

from __future__ import annotations

from deploykit.contract.host import Host
from deploykit_calibration.scheme import AOTINDUCTOR, AOTINDUCTOR_NO_VNNI, QuantScheme


def scheme_of(host: Host) -> QuantScheme:
    """The scheme for the CPU that compiles; without VNNI, weights of 7 bits keep 16-bit sums from saturating."""
    return AOTINDUCTOR if host.has("vnni") else AOTINDUCTOR_NO_VNNI
