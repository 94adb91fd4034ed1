"""What a program takes and gives: names, types, shapes, defaults, images, labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from deploykit.contract.errors import UsageError
from deploykit_targets.coreml.mil_evaluator import milproto
from deploykit_targets.coreml.mil_evaluator.dtypes import numpy_dtype

Array = np.ndarray[Any, Any]
Shape = tuple[int | None, ...]
_CHANNELS: Final = {"RGB": 3, "BGR": 3, "GRAYSCALE": 1, "GRAYSCALE_FLOAT16": 1}


@dataclass(frozen=True)
class ImageSpec:
    """An input that Core ML feeds with an image.

    Attributes:
        color: `RGB`, `BGR`, `GRAYSCALE` or `GRAYSCALE_FLOAT16`: the order of the program's planes.
        width, height: default size in pixels.
    """

    color: str
    width: int
    height: int

    @property
    def channels(self) -> int:
        """Planes of the program's tensor."""
        return _CHANNELS[self.color]


@dataclass(frozen=True)
class ValueSpec:
    """One input, output or state.

    Attributes:
        name: feature name.
        dtype: MIL type, such as `fp32`; `str` and `int64` for class labels.
        shape: sizes, None where they vary.
        default: value when an optional input is not given; None where it must be given.
        optional: whether it may be left out.
        image: set for image inputs and outputs.
        enumerated: the shapes allowed, where the model lists them.
        ranges: lower and upper bound per axis (None: unbounded), where the model gives them.
        classes: labels of a classifier's probabilities, in their order.
    """

    name: str
    dtype: str
    shape: Shape
    default: Array | None = None
    optional: bool = False
    image: ImageSpec | None = None
    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    classes: tuple[str | int, ...] = ()

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Whether an array of `shape` may be given.

        Raises:
            UsageError: rank, a fixed size, or the model's enumerated or ranged shapes do not admit it.
        """
        fits = len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )
        if fits and self.enumerated:
            fits = shape in self.enumerated
        elif fits and self.ranges:
            fits = all(
                low <= size and (high is None or size <= high)
                for size, (low, high) in zip(shape, self.ranges, strict=True)
            )
        if not fits:
            raise UsageError(f"input {self.name!r} has shape {shape}, the model takes {self._allowed()}")

    def _allowed(self) -> str:
        if self.enumerated:
            return f"one of {list(self.enumerated)}"
        if self.ranges:
            spans = (str(low) if low == high else f"{low}..{'' if high is None else high}" for low, high in self.ranges)
            return f"({', '.join(spans)})"
        return f"({', '.join('?' if size is None else str(size) for size in self.shape)})"

    def widened(self) -> ValueSpec:
        """The spec with unknown sizes where its ranges or enumerated shapes let them vary."""
        spans = self.ranges or tuple((min(sizes), max(sizes)) for sizes in zip(*self.enumerated, strict=True))
        if not spans:
            return self
        sizes = zip(self.shape, spans, strict=True)
        return replace(self, shape=tuple(size if low == high else None for size, (low, high) in sizes))

    def __str__(self) -> str:
        kind = f" {self.image.color} image" if self.image else ""
        return f"{self.name}: {self.dtype}[{', '.join('?' if s is None else str(s) for s in self.shape)}]{kind}"


@dataclass(frozen=True)
class Interface:
    """Inputs, outputs and states of one function."""

    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    states: tuple[ValueSpec, ...]


def interface_of(function: Any, description: Any | None) -> Interface:
    """Interface of a PyMIL function.

    Args:
        function: PyMIL function.
        description: protobuf description of the function, or None when there is no package.
    """
    features = {} if description is None else {feature.name: feature.type for feature in description.input}
    inputs, states = [], []
    for name, variable in function.inputs.items():
        spec = ValueSpec(name, *_tensor_type(variable))
        if milproto.is_state(variable):
            states.append(spec)
        else:
            inputs.append(described(spec, features[name]) if name in features else spec)
    return Interface(tuple(inputs), tuple(_outputs(function, description)), tuple(states))


def _tensor_type(variable: Any) -> tuple[str, Shape]:
    dtype, shape = milproto.type_of(variable)
    return dtype, shape or ()


def _outputs(function: Any, description: Any | None) -> list[ValueSpec]:
    features = {} if description is None else {feature.name: feature.type for feature in description.output}
    specs = []
    for variable in function.outputs:
        operation = variable.op
        if operation is not None and operation.op_type == "classify":
            specs.append(_classifier_output(variable, operation))
            continue
        spec = ValueSpec(variable.name, *_tensor_type(variable))
        specs.append(replace(spec, image=_image(features.get(variable.name))))
    return specs


def _classifier_output(variable: Any, operation: Any) -> ValueSpec:
    labels = tuple(milproto.list_items(operation.classes.val) or ())
    if variable is operation.outputs[0]:
        return ValueSpec(variable.name, "str" if isinstance(labels[0], str) else "int64", ())
    return ValueSpec(variable.name, "fp32", (len(labels),), classes=labels)


def _image(kind: Any | None) -> ImageSpec | None:
    if kind is None or kind.WhichOneof("Type") != "imageType":
        return None
    image = kind.imageType
    return ImageSpec(image.ColorSpace.Name(image.colorSpace), image.width, image.height)


def described(spec: ValueSpec, kind: Any) -> ValueSpec:
    """`spec` with what only the description of a feature knows."""
    if kind.WhichOneof("Type") == "imageType":
        return _described_image(spec, kind)
    array = kind.multiArrayType
    enumerated = tuple(tuple(shape.shape) for shape in array.enumeratedShapes.shapes)
    ranges = tuple(_range(size) for size in array.shapeRange.sizeRanges)
    return replace(
        spec,
        optional=kind.isOptional,
        default=_default(spec, array) if kind.isOptional else None,
        enumerated=enumerated,
        ranges=ranges if len(ranges) == len(spec.shape) else (),
    )


def _described_image(spec: ValueSpec, kind: Any) -> ValueSpec:
    planes = spec.shape[:-2]
    sizes = [(size.height, size.width) for size in kind.imageType.enumeratedSizes.sizes]
    ranges: tuple[tuple[int, int | None], ...] = ()
    if kind.imageType.WhichOneof("SizeFlexibility") == "imageSizeRange":
        span = kind.imageType.imageSizeRange
        fixed = [(int(size or 1), size) for size in planes]
        ranges = (*fixed, _range(span.heightRange), _range(span.widthRange))
    enumerated = tuple((*(int(size or 1) for size in planes), *size) for size in sizes)
    return replace(spec, image=_image(kind), enumerated=enumerated, ranges=ranges)


def _range(size: Any) -> tuple[int, int | None]:
    return int(size.lowerBound), None if size.upperBound < 0 else int(size.upperBound)


def _default(spec: ValueSpec, array: Any) -> Array:
    """The default value of an optional input: its constant in its default shape; zero where none is given."""
    field = array.WhichOneof("defaultOptionalValue")
    value = getattr(array, field) if field else 0
    return np.full(tuple(array.shape), value, dtype=numpy_dtype(spec.dtype))


def as_tensor_input(spec: ValueSpec, value: Array) -> Array:
    """`value` in the shape and type that the program takes.

    Image inputs take either the program's own tensor, or an image (height, width, 3) in RGB order or (height,
    width) in grey, as an image library gives it; scale and bias are ops of the program.

    Raises:
        UsageError: wrong shape, or a type that does not convert to the input's without loss of kind.
    """
    array = np.asarray(value)
    if spec.image is not None:
        array = _image_planes(spec, array)
    spec.check_shape(tuple(array.shape))
    wanted = numpy_dtype(spec.dtype)
    if not np.can_cast(array.dtype, wanted, casting="same_kind"):
        raise UsageError(f"input {spec.name!r} has dtype {array.dtype}, the model takes {wanted}")
    if wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise UsageError(f"input {spec.name!r} has values outside the range of {wanted}")
    return array


def _image_planes(spec: ValueSpec, array: Array) -> Array:
    """An image as (1, planes, height, width); tensors pass."""
    assert spec.image is not None
    if array.ndim == len(spec.shape):
        return array
    if array.ndim == 2 and spec.image.channels == 1:
        return array[None, None].astype(np.float32)
    if array.ndim == 3 and array.shape[-1] == 3 and spec.image.channels == 3:
        planes = array[..., ::-1] if spec.image.color == "BGR" else array
        return np.ascontiguousarray(planes.transpose(2, 0, 1)[None]).astype(np.float32)
    raise UsageError(
        f"input {spec.name!r} is a {spec.image.color} image; got an array of shape {array.shape}",
        hint="give (height, width, 3) in RGB order, (height, width) for grey, or the program's own tensor",
    )


def chosen_inputs(specs: Sequence[ValueSpec], feeds: Mapping[str, Array]) -> Iterator[tuple[ValueSpec, Array]]:
    """Every input with the array it takes: what is fed, else its default, in the shape and type of the input.

    Raises:
        UsageError: a feed that the model does not have, an input that is missing, or one that does not fit.
    """
    known = named(specs)
    unknown = sorted(set(feeds) - set(known))
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r}; it takes {list(known)}")
    for name, spec in known.items():
        value = feeds.get(name, spec.default)
        if value is None:
            raise UsageError(f"input {name!r} is missing; the model takes {list(known)}")
        yield spec, as_tensor_input(spec, value)


def named(specs: Sequence[ValueSpec]) -> Mapping[str, ValueSpec]:
    """Specs by name."""
    return {spec.name: spec for spec in specs}
