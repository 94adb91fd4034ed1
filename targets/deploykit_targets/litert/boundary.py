"""What a .tflite file takes and gives: names, types and layout of its inputs and outputs, written into the file.

The converter leaves int8 inputs and outputs, int32 where the model has int64, and names such as `args_0`. Here the
model's own names are put back, and one operator at each end turns the model's own types into those of the file's
graph, unless int8 is asked for.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from deploykit_targets.litert import flatbuffer, metadata

_TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "float64": "FLOAT64", "int64": "INT64", "int32": "INT32"}
# (type of the model, type in the file's graph) -> the operator that leads in, the operator that leads out
_BRIDGES = {
    ("FLOAT32", "INT8"): ("QUANTIZE", "DEQUANTIZE"),
    ("FLOAT32", "INT16"): ("QUANTIZE", "DEQUANTIZE"),
    ("INT64", "INT32"): ("CAST", "CAST"),
    ("FLOAT64", "FLOAT32"): ("CAST", "CAST"),
}


def finish(source: Path, destination: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Write the file that the artifact keeps.

    Args:
        source: what the converter (and quantizer) wrote; its signature has `args_<i>` and `output_<i>`.
        request: `inputs` and `outputs` with `name`, `dtype` and `layout`; `io` is `float` or `int8`; `about` is what
            the file's metadata says: `name`, `description`, `mean`, `std`, and `observed` extremes by input.
    Returns:
        `inputs` and `outputs` as the file has them: name, dtype, shape, layout, and scale and zero-point of integers;
        `operators`: how many of each kind it has.
    """
    model = flatbuffer.read(source)
    boundary = _Boundary(model, keep_integers=request["io"] == "int8")
    interface = {"inputs": boundary.inputs(request["inputs"]), "outputs": boundary.outputs(request["outputs"])}
    about = request["about"]
    model.description = about["description"].encode()
    described = [[_described(entry, about) for entry in interface[end]] for end in ("inputs", "outputs")]
    metadata.attach(model, about["name"], about["description"], *described)
    flatbuffer.write(model, destination)
    kinds = Counter(op.kind for op in flatbuffer.operators(model))
    return {**interface, "operators": dict(sorted(kinds.items()))}


class _Boundary:
    """One model while its ends are rewritten."""

    def __init__(self, model: Any, *, keep_integers: bool) -> None:
        self._model, self._graph, self._keep = model, model.subgraphs[0], keep_integers
        self._signature = model.signatureDefs[0]
        self._named: set[int] = set()

    def inputs(self, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        indices = _by_position(self._signature.inputs)
        taken = [self._lead(indices[i], spec, out=False) for i, spec in enumerate(specs)]
        self._graph.inputs = taken
        self._signature.inputs = self._maps(specs, taken)
        return self._describe(specs, taken)

    def outputs(self, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        indices = _by_position(self._signature.outputs)
        given = [self._lead(indices[i], spec, out=True) for i, spec in enumerate(specs)]
        self._graph.outputs = given
        self._signature.outputs = self._maps(specs, given)
        return self._describe(specs, given)

    def _lead(self, index: int, spec: dict[str, Any], *, out: bool) -> int:
        """The tensor that stands for `spec` in the file: that at `index`, or a new one behind an operator."""
        tensor, name = self._graph.tensors[index], str(spec["name"])
        wanted = _TYPES.get(spec["dtype"], flatbuffer.type_name(tensor))
        bridge = _BRIDGES.get((wanted, flatbuffer.type_name(tensor)))
        if bridge is None or (self._keep and bridge[0] == "QUANTIZE"):
            if index not in self._named:
                tensor.name = name.encode()
                self._named.add(index)
            return index
        new = self._tensor_like(tensor, name, wanted)
        operator = self._operator(bridge[out], [index] if out else [new], [new] if out else [index])
        operators = list(self._graph.operators)
        self._graph.operators = [*operators, operator] if out else [operator, *operators]
        return new

    def _tensor_like(self, tensor: Any, name: str, dtype: str) -> int:
        new = flatbuffer.schema().TensorT()
        new.name, new.shape, new.shapeSignature = name.encode(), tensor.shape, tensor.shapeSignature
        new.hasRank = tensor.hasRank
        new.type = getattr(flatbuffer.schema().TensorType, dtype)
        self._graph.tensors.append(new)  # buffer 0 is the empty one
        self._named.add(len(self._graph.tensors) - 1)
        return len(self._graph.tensors) - 1

    def _operator(self, kind: str, inputs: list[int], outputs: list[int]) -> Any:
        schema = flatbuffer.schema()
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(getattr(schema.BuiltinOperator, kind))
        operator.inputs, operator.outputs = inputs, outputs
        if kind == "CAST":
            options = schema.CastOptionsT()
            options.inDataType = self._graph.tensors[inputs[0]].type
            options.outDataType = self._graph.tensors[outputs[0]].type
            operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.CastOptions, options
        return operator

    def _code(self, builtin: int) -> int:
        """Index of an operator's code, added where the file has none."""
        for index, code in enumerate(self._model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
                return index
        code = flatbuffer.schema().OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def _maps(self, specs: list[dict[str, Any]], indices: list[int]) -> list[Any]:
        maps = []
        for spec, index in zip(specs, indices, strict=True):
            entry = flatbuffer.schema().TensorMapT()
            entry.name, entry.tensorIndex = str(spec["name"]).encode(), index
            maps.append(entry)
        return maps

    def _describe(self, specs: list[dict[str, Any]], indices: list[int]) -> list[dict[str, Any]]:
        described = []
        for spec, index in zip(specs, indices, strict=True):
            tensor = self._graph.tensors[index]
            found: dict[str, Any] = {
                "name": spec["name"],
                "dtype": flatbuffer.type_name(tensor).lower(),
                "shape": [int(size) for size in tensor.shape] if tensor.shape is not None else [],
                "layout": spec["layout"],
            }
            quantization = tensor.quantization
            if quantization is not None and quantization.scale is not None and len(quantization.scale) == 1:
                found["scale"] = float(quantization.scale[0])
                found["zero_point"] = int(quantization.zeroPoint[0])
            described.append(found)
        return described


def _described(entry: dict[str, Any], about: dict[str, Any]) -> metadata.Described:
    layout, shape = entry["layout"] or "", tuple(entry["shape"])
    image = len(layout) == len(shape) == 4 and shape[layout.index("C")] in (1, 3)
    text = f"{entry['dtype']} {list(shape)}"
    if "scale" in entry:
        text += f", real value = {entry['scale']:.9g} x (q - {entry['zero_point']})"
    observed = about["observed"].get(entry["name"])
    normalised = image and entry["name"] in about["inputs"]
    return metadata.Described(
        name=entry["name"],
        description=text,
        layout=layout if len(layout) == len(shape) else "",
        shape=shape,
        image=image,
        mean=tuple(about["mean"]) if normalised else (),
        std=tuple(about["std"]) if normalised else (),
        minimum=() if observed is None else (observed[0],),
        maximum=() if observed is None else (observed[1],),
    )


def _by_position(maps: list[Any]) -> list[int]:
    """Tensor indices in the order of the converter's `args_<i>` or `output_<i>`."""
    numbered = {int(flatbuffer.text(entry.name).rsplit("_", 1)[1]): int(entry.tensorIndex) for entry in maps}
    return [numbered[position] for position in sorted(numbered)]
