"""Every int8 scheme of the targets in this repository, by name: what holds for placements holds for each of them."""

from __future__ import annotations

from collections.abc import Mapping

from deploykit.contract.scheme import Scheme
from deploykit_targets._schemes.gpu import TENSORRT
from deploykit_targets._schemes.x86 import ONNX_X86, ONNX_X86_NO_VNNI
from deploykit_targets.aotinductor.scheme import AOTINDUCTOR, AOTINDUCTOR_NO_VNNI
from deploykit_targets.coreml.scheme import COREML
from deploykit_targets.litert.scheme import LITERT
from deploykit_targets.openvino.scheme import OPENVINO
from deploykit_targets.tvm.scheme import TVM, TVM_X86, TVM_X86_NO_VNNI

SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        *(ONNX_X86, ONNX_X86_NO_VNNI, OPENVINO, AOTINDUCTOR, AOTINDUCTOR_NO_VNNI),
        *(TENSORRT, LITERT, COREML, TVM, TVM_X86, TVM_X86_NO_VNNI),
    )
}
