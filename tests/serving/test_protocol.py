"""What a body says: read with the types of the protocol, or refused with the field."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.contract.tensors import TensorSpec
from deploykit_serving.protocol import read_request, write_answer
from deploykit_serving.refusals import Refusal

X = TensorSpec("x", ("batch", 2), "float32")
IDS = TensorSpec("ids", ("batch",), "int8")
HALF = TensorSpec("half", ("batch", 2), "float16")
FLAG = TensorSpec("flag", (2,), "bool")
OUT = (TensorSpec("y", ("batch", 2), "float32"), TensorSpec("h", ("batch",), "float16"))
Y = OUT[:1]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5], **changes}


def body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def read(text: bytes, specs: Any = (X,), outputs: Any = Y, length: int | None = None) -> Any:
    return read_request(text, length, specs, outputs)


def refusal(text: bytes, specs: Any = (X,), outputs: Any = Y, length: int | None = None) -> str:
    with pytest.raises(Refusal) as found:
        read(text, specs, outputs, length)
    assert found.value.status == 400
    return found.value.message


def test_flat_and_nested_data_are_the_same_tensor() -> None:
    flat = read(body(tensor(shape=[2, 2], data=[1, 2, 3, 4]))).feeds["x"]
    nested = read(body(tensor(shape=[2, 2], data=[[1, 2], [3, 4]]))).feeds["x"]
    assert flat.dtype == np.float32 and np.array_equal(flat, nested) and flat.shape == (2, 2)


def test_id_deadline_and_outputs_are_read() -> None:
    text = body(tensor(), id="a", parameters={"timeout": 1500}, outputs=[{"name": "y"}])
    found = read(text)
    assert (found.id, found.timeout_ms, found.outputs) == ("a", 1.5, (("y", False),))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"shape": [1, 3]}, "inputs[0].shape"),
        ({"shape": [1, 2, 1]}, "inputs[0].shape"),
        ({"shape": [0, 2], "data": []}, "inputs[0].shape"),
        ({"shape": [-1, 2]}, "inputs[0].shape"),
        ({"shape": [1, True]}, "inputs[0].shape[1]"),
        ({"shape": [1.5, 2]}, "inputs[0].shape[0]"),
        ({"shape": [10**30, 2]}, "inputs[0].shape[0]"),
        ({"shape": [int("9" * 4000), 2]}, "inputs[0].shape[0]"),
        ({"shape": [1] * 100}, "inputs[0].shape"),
        ({"datatype": "FP64"}, "inputs[0].datatype"),
        ({"datatype": "BYTES"}, "inputs[0].datatype"),
        ({"datatype": "BF16"}, "inputs[0].datatype"),
        ({"name": "z"}, "inputs[0].name"),
        ({"name": None}, "inputs[0].name"),
        ({"data": [1]}, "inputs[0].data"),
        ({"data": [1, 2, 3]}, "inputs[0].data"),
        ({"data": [1, "2"]}, "inputs[0].data[1]"),
        ({"data": [1, None]}, "inputs[0].data[1]"),
        ({"data": [1, True]}, "inputs[0].data[1]"),
        ({"data": [1, 1e39]}, "inputs[0].data"),
        ({"data": [[1], [2]]}, "inputs[0].data"),
        ({"data": [[1, 2], [3]]}, "inputs[0].data"),
        ({"data": [[1, "2"]]}, "inputs[0].data[0][1]"),
        ({"data": {"a": 1}}, "inputs[0].data"),
        ({"data": None}, "inputs[0].data"),
        ({"data": "abc"}, "inputs[0].data"),
        ({"parameters": {"binary_data_size": 8}}, "inputs[0].data"),
        ({"parameters": {"binary_data_size": -1}}, "inputs[0].parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": True}}, "inputs[0].parameters.binary_data_size"),
        ({"parameters": {"shared_memory_region": "a"}}, "inputs[0].parameters.shared_memory_region"),
        ({"parameters": {"nested": [1]}}, "inputs[0].parameters"),
    ],
)
def test_what_is_wrong_with_an_input_is_told_with_its_field(change: dict[str, Any], field: str) -> None:
    assert refusal(body(tensor(**change))).startswith(field)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"id": 7}, "id"),
        ({"parameters": {"timeout": -1}}, "parameters.timeout"),
        ({"parameters": {"timeout": 1.5}}, "parameters.timeout"),
        ({"parameters": {"timeout": 10**400}}, "parameters.timeout"),
        ({"parameters": {"sequence_id": 1}}, "parameters.sequence_id"),
        ({"parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ({"outputs": [{"name": "z"}]}, "outputs[0].name"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "outputs[1].name"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "outputs[0].parameters.binary_data"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 2}}]}, "outputs[0].parameters.classification"),
        ({"outputs": [{}]}, "outputs[0]"),
    ],
)
def test_what_is_wrong_with_the_rest_is_told_with_its_field(more: dict[str, Any], field: str) -> None:
    assert refusal(body(tensor(), **more)).startswith(field)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'"a"', b"\xff", b"[" * 100_000, b'{"inputs":' + b"[" * 10**5]
)
def test_what_is_no_request_is_refused(text: bytes) -> None:
    assert refusal(text).startswith(("body", "inputs"))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_json_has_no_words_for_what_is_not_finite(word: str) -> None:
    text = f'{{"inputs":[{{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,{word}]}}]}}'
    assert refusal(text.encode()).startswith(("body", "inputs[0].data"))


def test_depth_in_data_is_no_crash() -> None:
    text = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":' + b"[" * 500 + b"]" * 500 + b"}]}"
    assert refusal(text).startswith("inputs[0].data")


def test_names_come_once_and_all() -> None:
    assert "given twice" in refusal(body(tensor(), tensor()))
    assert refusal(body()).startswith("inputs: lacks 'x'")


@pytest.mark.parametrize("data", [[128], [-129], [10**30]])
def test_whole_numbers_that_do_not_fit_are_refused_and_not_wrapped(data: list[int]) -> None:
    text = body(tensor(name="ids", shape=[1], datatype="INT8", data=data))
    assert refusal(text, (IDS,)).startswith("inputs[0].data")


@pytest.mark.parametrize("value", [1.0, 1.5, True, "1"])
def test_whole_numbers_are_whole(value: object) -> None:
    text = body(tensor(name="ids", shape=[1], datatype="INT8", data=[value]))
    assert refusal(text, (IDS,)).startswith("inputs[0].data[0]")


def test_truth_values_are_true_or_false() -> None:
    good = read(body(tensor(name="flag", shape=[2], datatype="BOOL", data=[True, False])), (FLAG,))
    assert good.feeds["flag"].tolist() == [True, False]
    assert refusal(body(tensor(name="flag", shape=[2], datatype="BOOL", data=[1, 0])), (FLAG,))


def test_axes_of_one_name_are_of_one_size() -> None:
    text = body(tensor(shape=[2, 2], data=[1, 2, 3, 4]), tensor(name="ids", shape=[3], datatype="INT8", data=[1, 2, 3]))
    assert refusal(text, (X, IDS)).startswith("inputs[1].shape: axis 'batch' is 3 here and 2")


# -- binary -----------------------------------------------------------------------------------------------------


def binary(array: np.ndarray, name: str = "x", datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype,
            "parameters": {"binary_data_size": array.nbytes}, **more}  # fmt: skip


def test_binary_tensors_follow_the_json_in_order() -> None:
    x, ids = np.array([[1, 2], [3, 4]], np.float32), np.array([5, 6], np.int8)
    head = body(binary(x), binary(ids, "ids", "INT8"))
    found = read(head + x.tobytes() + ids.tobytes(), (X, IDS), length=len(head))
    assert np.array_equal(found.feeds["x"], x) and np.array_equal(found.feeds["ids"], ids)


def test_half_precision_is_binary_only() -> None:
    half = np.array([[1, 2]], np.float16)
    head = body(binary(half, "half", "FP16"))
    assert np.array_equal(read(head + half.tobytes(), (HALF,), length=len(head)).feeds["half"], half)
    assert "binary" in refusal(body(tensor(name="half", datatype="FP16")), (HALF,))
    assert "binary" in refusal(body(tensor()), outputs=OUT)
    assert read(body(tensor(), parameters={"binary_data_output": True}), outputs=OUT).outputs == (
        ("y", True),
        ("h", True),
    )


@pytest.mark.parametrize("sent", [7, 9, 0])
def test_sizes_add_up(sent: int) -> None:
    head = body(binary(np.zeros((1, 2), np.float32)))
    assert "inputs" in refusal(head + bytes(sent), length=len(head))


def test_a_size_that_is_not_the_shapes_is_refused() -> None:
    head = body(tensor(data=None, parameters={"binary_data_size": 12}) | {"data": None})
    text = head.replace(b', "data": null', b"")
    assert refusal(text + bytes(12), length=len(text)).startswith("inputs[0].parameters.binary_data_size: is 12")


def test_a_header_longer_than_the_body_is_refused() -> None:
    assert refusal(body(tensor()), length=10**6).startswith("Inference-Header-Content-Length")


def test_a_truth_value_is_one_byte_of_two() -> None:
    head = body(binary(np.zeros(2, bool), "flag", "BOOL"))
    assert "neither 0 nor 1" in refusal(head + b"\x02\x00", (FLAG,), length=len(head))


# -- answers ----------------------------------------------------------------------------------------------------


def test_an_answer_has_the_id_and_what_was_asked_for() -> None:
    request = read(body(tensor(), id="k", outputs=[{"name": "h", "parameters": {"binary_data": True}}, {"name": "y"}]),
                   outputs=OUT)  # fmt: skip
    outputs = {"y": np.array([[1, 2]], np.float32), "h": np.array([3], np.float16)}
    answer = write_answer(request, outputs, model="m", version="2")
    assert answer.header_length is not None
    document = json.loads(answer.body[: answer.header_length])
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "2", "k")
    assert [each["name"] for each in document["outputs"]] == ["h", "y"]
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 2}
    assert answer.body[answer.header_length :] == np.array([3], np.float16).tobytes()
    assert document["outputs"][1] == {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}


def test_what_json_cannot_say_is_not_said_as_null() -> None:
    outputs = {"y": np.array([[1, np.nan]], np.float32)}
    with pytest.raises(Refusal) as found:
        write_answer(read(body(tensor())), outputs, model="m", version="1")
    assert found.value.status == 406 and "'y'" in found.value.message
    binary_request = read(body(tensor(), parameters={"binary_data_output": True}))
    assert write_answer(binary_request, outputs, model="m", version="1").body.endswith(outputs["y"].tobytes())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.one_of(st.none(), st.integers(-5, 500)))
def test_bytes_end_in_a_request_or_a_refusal(noise: bytes, length: int | None) -> None:
    with contextlib.suppress(Refusal):
        read(noise, length=length)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["name", "shape", "datatype", "data", "parameters", "id", "outputs", "inputs"]), _JSON)
def test_any_value_in_any_field_ends_in_a_request_or_a_refusal(field: str, value: Any) -> None:
    if field in ("id", "outputs", "inputs"):
        document: dict[str, Any] = {"inputs": [tensor()], field: value}
    else:
        document = {"inputs": [tensor(**{field: value})]}
    with contextlib.suppress(Refusal):
        read(json.dumps(document).encode())
