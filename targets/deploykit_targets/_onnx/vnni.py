"""What x86 CPUs without VNNI do to 8-bit weights, and which devices and machines that concerns.

Without VNNI a product of uint8 activations and int8 weights is summed in pairs in 16 bits (`vpmaddubsw`), which
saturate: 2 x 255 x 127 is beyond 32767. Weights of 7 bits cannot reach that. Nothing is imported here but words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.contract.devices import Device
    from deploykit.contract.host import Host

_FULL_BITS = 8


def has_wide_weights(device: Device) -> bool:
    """Whether int8 weights for `device` use all 8 bits."""
    return bool(device.extra.get("weight_bits", _FULL_BITS) == _FULL_BITS)


def needs_exact(host: Host) -> bool:
    """Whether sums of 8-bit weights would saturate on `host`.

    Where the instruction sets are not known, the right form is taken and not the fast one.
    """
    return host.family == "x86-64" and not host.has("vnni")
