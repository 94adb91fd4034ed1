"""The compiler's listing of engine layers, read from one that TensorRT for RTX 1.7 logged."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.errors import ConversionError
from deploykit_targets._tensorrt.compiled import counted, findings_of, summary_of, wanted_of
from deploykit_targets._tensorrt.compiler import Compiled
from deploykit_targets._tensorrt.listing import EngineLayer, parse_listing

TEXT = (Path(__file__).parent / "listings" / "residual_int8_sm86.txt").read_text(encoding="utf-8")
LAYERS = parse_listing(TEXT)


def chain(name: str, read: str = "Float", written: str = "Float") -> str:
    tensor = "{{ Name: t, Dimensions: [2,3], Strides: [3,1], StrideOrder: [1,0], Datatype: {}, Format: (L) Row }}"
    ends = f"Inputs: [ {tensor.format(read)}], Outputs: [ {tensor.format(written)}]"
    return f"Layers:\nName: __myl_{name}_myl0_0, LayerType: kgen, {ends}, TacticName: t, StreamId: 0, Metadata: \n\n"


def test_every_line_is_a_layer_and_what_lies_behind_them_is_not() -> None:
    assert [layer.type for layer in LAYERS] == ["kgen", "correlation", "kgen", "correlation", "kgen", "kgen", "kgen"]
    assert [layer.precision for layer in LAYERS if layer.role == "multiplies"] == ["int8", "int8"]


def test_onnx_nodes_types_and_shapes_are_read() -> None:
    first = LAYERS[1]
    assert first.nodes == ("conv2d", "x_dq", "conv2d_weight_dq")
    assert (first.inputs[0].shape, first.inputs[0].precision) == ((1, 16, 32, 32), "int8")
    assert first.constants[0].shape == (32, 16, 3, 3)
    assert first.moved_bytes == 16 * 32 * 32 + 4 * 32 * 32 * 32


def test_a_chain_that_reads_int8_computes_in_float() -> None:
    """It widens what it reads: a small product that runs in such a chain is no int8 product."""
    tail = LAYERS[4]
    assert "int8" in {tensor.precision for tensor in tail.inputs}
    assert (tail.precision, tail.role) == ("float32", "other")


@pytest.mark.parametrize(
    ("name", "is_reformat"),
    [("Cast", True), ("TranReshCast", True), ("MulMinMaxRounCast", False), ("CastMulSum", False), ("Add", False)],
)
def test_a_reformat_is_a_chain_that_only_moves(name: str, is_reformat: bool) -> None:
    (layer,) = parse_listing(chain(name))
    assert layer.is_chain and layer.is_reformat is is_reformat


@pytest.mark.parametrize(
    ("name", "kind", "read", "written", "precision", "is_product"),
    [
        ("__myl_FcAddCast_myl0_51", "runtime_fusion", "Half", "Float", "float16", True),
        ("__myl_CastMulFc_myl0_2", "runtime_fusion", "Int8 Half", "Float", "float16", True),
        ("_gemm_mha_v2_myl0_5", "kgen", "Int8 Int8", "Int8", "int8", True),
        ("__myl_ReluMulMinMaxRounCast_myl0_1", "kgen", "Half", "Int8", "float16", False),
    ],
)
def test_a_product_within_a_chain_is_a_product(
    name: str, kind: str, read: str, written: str, precision: str, is_product: bool
) -> None:
    """One that dequantizes what it reads multiplies in float; attention in one kernel reads and multiplies int8."""
    tensors = ", ".join(chain("X", each).partition("Inputs: [ ")[2].partition("], Outputs")[0] for each in read.split())
    text = chain("X", "Bool", written).replace(
        chain("X", "Bool").partition("Inputs: [ ")[2].partition("], Out")[0], tensors
    )
    (layer,) = parse_listing(text.replace("__myl_X_myl0_0", name).replace("kgen", kind))
    assert (layer.role == "multiplies", layer.precision) == (is_product, precision)
    assert layer.is_chain is (not is_product)


def test_a_line_in_another_form_is_an_error() -> None:
    with pytest.raises(ConversionError, match="cannot be read: conv2d, int8"):
        parse_listing("Layers:\nconv2d, int8\n\n")


def test_sizes_that_are_not_known_move_nothing_rather_than_something_negative() -> None:
    (layer,) = parse_listing(chain("Add").replace("[2,3]", "[-1,3]"))
    assert layer.moved_bytes == 0


def planned(**precisions: str) -> Achieved:
    layers = [LayerAchieved(name, name, "conv", precision, macs=10) for name, precision in precisions.items()]
    return Achieved.count("int8", layers, source="the file")


def compiled(layers: tuple[EngineLayer, ...] = LAYERS) -> Compiled:
    return Compiled("1.7.1.116", "sm_86", layers)


def test_what_the_compiler_says_is_counted_and_a_float_product_is_a_finding() -> None:
    plan = planned(conv2d="int8", conv2d_1="int8", linear="int8")
    achieved = counted(plan, compiled())
    assert achieved.macs == {"int8": 20, "float32": 10}
    assert "sm_86" in achieved.source and "1.7.1.116" in achieved.source
    (finding,) = findings_of(plan, achieved)
    assert finding == "linear: placed in int8, and the compiler computes it in float32"


def test_a_pointwise_layer_of_a_chain_says_so() -> None:
    layers = [LayerAchieved("add", "add", "add", "int8"), LayerAchieved("conv2d", "conv", "conv", "int8", macs=10)]
    achieved = counted(Achieved.count("int8", layers, source="the file"), compiled())
    assert achieved.layers[0].reason == "a step of a fused chain, which computes in float32"
    assert not list(findings_of(Achieved.count("int8", layers, source="the file"), achieved))


def test_a_layer_that_is_in_no_engine_layer_is_unknown() -> None:
    achieved = counted(planned(elsewhere="int8"), compiled())
    assert achieved.macs == {"unknown": 10}


def test_the_summary_is_one_line() -> None:
    assert wanted_of(planned(conv2d="int8")) == "int8"
    assert summary_of(LAYERS, "int8") == "NVIDIA's compiler: 2 of 2 layers in Int8, 5 fused chains, 0 reformats"
    assert summary_of(LAYERS, "fp8") == "NVIDIA's compiler: 0 of 2 layers in FP8, 5 fused chains, 0 reformats"


def test_a_layer_that_the_compiler_made_as_asked_has_no_reason_left() -> None:
    layers = [LayerAchieved("conv2d", "conv", "conv", "float32", macs=10, reason="no neighbour computes in integers")]
    (layer,) = counted(Achieved.count("int8", layers, source="the file"), compiled()).layers
    assert (layer.precision, layer.reason) == ("int8", "")


def test_a_layer_in_another_type_than_it_was_left_in_has_both_reasons() -> None:
    """Of a weight that fits no 4-bit block the file holds 8 bits, and the compiler may expand these, too."""
    layer = LayerAchieved("linear", "fc", "linear", "int8-weights", macs=10, reason="no multiple of a block of 32")
    (found,) = counted(Achieved.count("int4-weight-only", [layer], source="the file"), compiled()).layers
    assert found.precision == "float32"
    other = "placed in int8-weights, and the compiler computes it in float32"
    assert found.reason == f"no multiple of a block of 32; {other}"
