"""Real .mlpackage files: round trips of every family, what the description adds, damaged packages, the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from deploykit.contract.errors import ArtifactError, ConversionError, MissingDependencyError, UsageError
from deploykit_targets.coreml.mil_evaluator import UnsupportedOpError, from_mil, load, milproto, run_package
from deploykit_targets.coreml.mil_evaluator.__main__ import main as command
from deploykit_targets.coreml.mil_evaluator.package import locate


def image(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def family(mil, rng):
    """name -> (ops that must be in the file, builder, inputs, target)."""
    mb = mil.mb
    conv, deconv = image(rng, 4, 3, 3, 3), image(rng, 3, 2, 2, 2)
    gates, recurrent = image(rng, 16, 3), image(rng, 16, 4)
    table = rng.normal(size=16).astype(np.float32)
    return {
        "conv": (
            "conv relu",
            lambda x: mb.relu(x=mb.conv(x=x, weight=conv, pad_type="same")),
            [image(rng, 1, 3, 6, 6)],
        ),
        "deconv": ("conv_transpose", lambda x: mb.conv_transpose(x=x, weight=deconv), [image(rng, 1, 3, 4, 4)]),
        "pool": (
            "avg_pool max_pool",
            lambda x: (
                mb.avg_pool(x=x, kernel_sizes=[2, 2], pad_type="same"),
                mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
            ),
            [image(rng, 1, 2, 5, 5)],
        ),
        "matmul": (
            "matmul softmax",
            lambda x, y: mb.softmax(x=mb.matmul(x=x, y=y)),
            [image(rng, 2, 3), image(rng, 3, 4)],
        ),
        "norm": ("layer_norm gelu", lambda x: mb.gelu(x=mb.layer_norm(x=x, axes=[-1])), [image(rng, 2, 3, 8)]),
        "reduce": (
            "reduce_mean reduce_argmax",
            lambda x: (mb.reduce_mean(x=x, axes=[1]), mb.reduce_argmax(x=x)),
            [image(rng, 3, 4)],
        ),
        "slice": (
            "slice_by_index",
            lambda x: mb.slice_by_index(x=x, begin=[0, 3], end=[2, 0], stride=[1, -1], squeeze_mask=[True, False]),
            [image(rng, 2, 5)],
        ),
        "gather": (
            "gather",
            lambda x, i: mb.gather(x=x, indices=i, axis=1),
            [image(rng, 3, 5), np.array([4, 0, 4], np.int32)],
        ),
        "scatter": (
            "scatter_nd",
            lambda x, i, u: mb.scatter_nd(data=x, indices=i, updates=u, mode="add"),
            [image(rng, 3, 2), np.array([[2], [0]], np.int32), image(rng, 2, 2)],
        ),
        "join": (
            "concat split",
            lambda x: mb.concat(values=mb.split(x=x, num_splits=2, axis=1)[::-1], axis=0),
            [image(rng, 2, 4)],
        ),
        "resize": (
            "resize",
            lambda x: mb.resize(x=x, shape=[7, 5], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"),
            [image(rng, 1, 2, 3, 4)],
        ),
        "crop": (
            "crop_resize",
            lambda x, b: mb.crop_resize(x=x, boxes=b, target_height=2, target_width=2, sampling_mode="ALIGN_CORNERS"),
            [image(rng, 1, 1, 5, 5), np.array([[1, 1, 3, 3.5]], np.float32)],
        ),
        "topk": ("topk", lambda x: mb.topk(x=x, k=2), [image(rng, 3, 5)]),
        "quantize": (
            "quantize dequantize",
            lambda x: mb.dequantize(
                input=mb.quantize(input=x, scale=np.float32(0.1), zero_point=np.int8(3), output_dtype="int8"),
                scale=np.float32(0.1),
                zero_point=np.int8(3),
            ),
            [image(rng, 4, 4)],
        ),
        "lstm": (
            "lstm",
            lambda x, h: mb.lstm(
                x=x, initial_h=h, initial_c=h, weight_ih=gates, weight_hh=recurrent, output_sequence=True
            ),
            [image(rng, 5, 1, 3), image(rng, 1, 4)],
        ),
        "loop": (
            "while_loop",
            lambda x, n: mb.while_loop(
                _cond=lambda i, y: mb.less(x=i, y=n),
                _body=lambda i, y: (mb.add(x=i, y=1.0), mb.exp(x=mb.sin(x=y))),
                loop_vars=([0.0], x),
            ),
            [image(rng, 3), np.array([4], np.float32)],
        ),
        "cond": (
            "cond",
            lambda x, y: mb.cond(
                pred=mb.squeeze(x=mb.greater(x=y, y=0.0)), _true_fn=lambda: mb.exp(x=x), _false_fn=lambda: mb.sin(x=x)
            ),
            [image(rng, 3), np.array([1], np.float32)],
        ),
        "palette": (
            "constexpr_lut_to_dense",
            lambda x: mb.linear(
                x=x,
                weight=mb.constexpr_lut_to_dense(
                    indices=rng.integers(0, 256, 24).astype(np.uint8), lut=table, shape=np.array([6, 8], np.uint32)
                ),
            ),
            [image(rng, 2, 8)],
            "iOS16",
        ),
        "affine weight": (
            "constexpr_affine_dequantize",
            lambda x: mb.linear(
                x=x,
                weight=mb.constexpr_affine_dequantize(
                    quantized_data=rng.integers(0, 256, (6, 8)).astype(np.uint8),
                    zero_point=np.uint8(7),
                    scale=np.linspace(0.1, 0.2, 6).astype(np.float32),
                    axis=0,
                ),
            ),
            [image(rng, 2, 8)],
            "iOS16",
        ),
        "attention": (
            "scaled_dot_product_attention",
            lambda q, k: mb.scaled_dot_product_attention(query=q, key=k, value=k),
            [image(rng, 1, 3, 4), image(rng, 1, 5, 4)],
            "iOS18",
        ),
        "block weight": (
            "constexpr_blockwise_shift_scale",
            lambda x: mb.linear(
                x=x,
                weight=mb.constexpr_blockwise_shift_scale(
                    data=rng.integers(-8, 8, (6, 8)).astype(mil.types.nptype_from_builtin(mil.types.int4)),
                    scale=rng.uniform(0.1, 0.2, (6, 2)).astype(np.float32),
                ),
            ),
            [image(rng, 2, 8)],
            "iOS18",
        ),
    }


NAMES = (
    "conv deconv pool matmul norm reduce slice gather scatter join resize crop topk quantize lstm loop cond palette|"
    "affine weight|attention|block weight"
)
NAMES = [*NAMES.split("|", maxsplit=1)[0].split(), *NAMES.split("|")[1:]]


HALF = ["conv", "pool", "norm", "gather", "slice", "lstm", "loop", "palette", "attention", "block weight"]


@pytest.mark.parametrize(("name", "fp16"), [*((name, False) for name in NAMES), *((name, True) for name in HALF)])
def test_a_file_gives_what_the_program_in_memory_gives(mil, rng, tmp_path, name, fp16):
    """In float32 to the last bits; in float16 to the rounding of inputs, weights and each op."""
    ops, build, inputs, *rest = family(mil, rng)[name]
    target = rest[0] if rest else "iOS17"
    program = mil.build(build, inputs, opset=target)
    direct = from_mil(program)
    feeds = {spec.name: value for spec, value in zip(direct.inputs, inputs, strict=True)}
    want = list(direct.run(feeds).values())
    loaded = load(mil.save(program, tmp_path / "m.mlpackage", target=target, fp16=fp16))
    assert set(ops.split()) <= set(loaded.ops())
    got = loaded.run(feeds)
    mil.check_types(loaded, got)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if fp16 else {"rtol": 1e-5, "atol": 1e-6}
    for g, w in zip(got.values(), want, strict=True):
        np.testing.assert_allclose(g.astype(float), w.astype(float), **tolerance)


def test_every_name_is_a_round_trip(mil, rng):
    assert set(family(mil, rng)) == set(NAMES)


# --- what the description adds ------------------------------------------------------------------------------------


def simple(mil, shape=(1, 3, 4, 4)):
    return mil.build(lambda x: mil.mb.mul(x=x, y=np.float32(2)), [np.zeros(shape, np.float32)])


@pytest.mark.parametrize(("target", "version"), [("iOS15", 6), ("iOS16", 7), ("iOS18", 9), ("iOS26", 10)])
def test_every_target_version_loads(mil, tmp_path, rng, target, version):
    weight, x = image(rng, 2, 3, 3, 3), image(rng, 1, 3, 4, 4)
    built = min(mil.ct.target[target], mil.ct.target.iOS18).name
    program = mil.build(lambda x: mil.mb.conv(x=x, weight=weight, pad_type="same"), [x], opset=built)
    loaded = load(mil.save(program, tmp_path / "m.mlpackage", target=target))
    assert loaded.specification_version == version
    (want,) = from_mil(program).run({"x": x}).values()
    np.testing.assert_allclose(next(iter(loaded.run({"x": x}).values())), want, rtol=1e-5, atol=1e-6)


def test_interface_of_a_file(mil, tmp_path):
    program = load(mil.save(simple(mil), tmp_path / "m.mlpackage"))
    (spec,) = program.inputs
    assert (spec.name, spec.dtype, spec.shape, spec.optional) == ("x", "fp32", (1, 3, 4, 4), False)
    assert program.function == "main" and program.functions == ("main",) and program.specification_version == 8
    assert str(spec) == "x: fp32[1, 3, 4, 4]"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "'x' is missing"),
        ({"x": np.zeros((1, 3, 4, 4)), "y": np.zeros(1)}, "no input 'y'"),
        ({"x": np.zeros((1, 3, 4, 5))}, r"shape \(1, 3, 4, 5\), the model takes \(1, 3, 4, 4\)"),
        ({"x": np.zeros((1, 3, 4, 4), complex)}, "dtype complex128"),
    ],
)
def test_wrong_feeds_are_named(mil, feeds, message):
    with pytest.raises(UsageError, match=message):
        from_mil(simple(mil)).run(feeds)


def test_integers_are_checked_for_range_and_kind(mil):
    program = from_mil(mil.build(lambda x: mil.mb.add(x=x, y=1), [np.zeros(2, np.int32)]))
    np.testing.assert_array_equal(next(iter(program.run({"x": np.array([1, 2])}).values())), [2, 3])
    with pytest.raises(UsageError, match="range"):
        program.run({"x": np.array([1, 2**40])})
    with pytest.raises(UsageError, match="dtype float64"):
        program.run({"x": np.array([1.0, 2.0])})


def test_ranged_and_enumerated_shapes(mil, tmp_path, rng):
    ct = mil.ct
    program = mil.build(lambda x: mil.mb.relu(x=x), [np.zeros((1, 3), np.float32)], dynamic=True)
    ranged = ct.TensorType("x", shape=(ct.RangeDim(1, 4), 3))
    loaded = load(mil.save(program, tmp_path / "a.mlpackage", inputs=[ranged]))
    x = rng.normal(size=(3, 3)).astype(np.float32)
    np.testing.assert_array_equal(next(iter(loaded.run({"x": x}).values())), np.maximum(x, 0))
    with pytest.raises(UsageError, match=r"\(1\.\.4, 3\)"):
        loaded.run({"x": np.zeros((5, 3), np.float32)})

    program = mil.build(lambda x: mil.mb.relu(x=x), [np.zeros((1, 3), np.float32)], dynamic=True)
    listed = ct.TensorType("x", shape=ct.EnumeratedShapes(shapes=[[1, 3], [2, 6]]))
    loaded = load(mil.save(program, tmp_path / "b.mlpackage", inputs=[listed]))
    assert set(loaded.inputs[0].enumerated) == {(1, 3), (2, 6)}
    assert next(iter(loaded.run({"x": np.zeros((2, 6))}).values())).shape == (2, 6)
    with pytest.raises(UsageError, match="one of"):
        loaded.run({"x": np.zeros((2, 3), np.float32)})


def test_two_inputs_of_unknown_size_that_must_be_equal(mil, tmp_path, rng):
    ct = mil.ct
    inputs = [np.zeros((1, 3), np.float32)] * 2
    program = mil.build(lambda x, y: mil.mb.add(x=x, y=y), inputs, dynamic=True)
    types = [ct.TensorType(name, shape=(ct.RangeDim(1, 8), 3)) for name in "xy"]
    loaded = load(mil.save(program, tmp_path / "m.mlpackage", inputs=types))
    x, y = rng.normal(size=(2, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(next(iter(loaded.run({"x": x, "y": y}).values())), x + y, rtol=1e-6)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_image_input_with_scale_and_bias(mil, tmp_path, rng, color):
    ct = mil.ct
    layout = getattr(ct.colorlayout, color)
    kind = ct.ImageType("x", shape=(1, 3, 4, 4), scale=1 / 127.5, bias=[-1, -0.5, 0], color_layout=layout)
    loaded = load(mil.save(simple(mil), tmp_path / "m.mlpackage", inputs=[kind]))
    assert loaded.inputs[0].image.color == color
    pixels = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    planes = pixels[..., ::-1] if color == "BGR" else pixels
    want = 2 * (planes.transpose(2, 0, 1) / 127.5 + np.array([-1, -0.5, 0]).reshape(3, 1, 1))[None]
    (got,) = loaded.run({"x": pixels}).values()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    (tensor,) = loaded.run({"x": planes.transpose(2, 0, 1)[None].astype(np.float32)}).values()
    np.testing.assert_array_equal(tensor, got)
    with pytest.raises(UsageError, match="image"):
        loaded.run({"x": pixels[..., 0]})


def test_grey_image(mil, tmp_path, rng):
    ct = mil.ct
    kind = ct.ImageType("x", shape=(1, 1, 4, 4), color_layout=ct.colorlayout.GRAYSCALE)
    loaded = load(mil.save(simple(mil, (1, 1, 4, 4)), tmp_path / "m.mlpackage", inputs=[kind]))
    pixels = rng.integers(0, 256, (4, 4)).astype(np.uint8)
    np.testing.assert_array_equal(next(iter(loaded.run({"x": pixels}).values()))[0, 0], 2.0 * pixels)


def test_optional_input_takes_its_default(mil, tmp_path):
    ct = mil.ct
    program = mil.build(lambda x, y: mil.mb.add(x=x, y=y), [np.zeros(2, np.float32)] * 2)
    kinds = [ct.TensorType("x", shape=(2,)), ct.TensorType("y", shape=(2,), default_value=np.full(2, 5, np.float32))]
    loaded = load(mil.save(program, tmp_path / "m.mlpackage", inputs=kinds))
    assert loaded.inputs[1].optional
    np.testing.assert_array_equal(next(iter(loaded.run({"x": np.ones(2)}).values())), [6, 6])
    np.testing.assert_array_equal(next(iter(loaded.run({"x": np.ones(2), "y": np.zeros(2)}).values())), [1, 1])


def test_classifier(mil, tmp_path):
    config = mil.ct.ClassifierConfig(["cat", "dog", "eel"])
    program = mil.build(lambda x: mil.mb.softmax(x=x), [np.zeros((1, 3), np.float32)])
    loaded = load(mil.save(program, tmp_path / "m.mlpackage", classifier_config=config))
    assert "classify" in loaded.ops()
    outputs = loaded.run({"x": np.array([[0, 3, 1]], np.float32)})
    assert outputs["classLabel"].item() == "dog"
    (probabilities,) = [value for name, value in outputs.items() if name != "classLabel"]
    assert probabilities.shape == (3,) and probabilities.sum() == pytest.approx(1)
    assert loaded.outputs[1].classes == ("cat", "dog", "eel")


def test_state_through_a_file(mil, tmp_path):
    mb, types, ct = mil.mb, mil.types, mil.ct

    def build(total, x):
        return mb.coreml_update_state(state=total, value=mb.add(x=mb.read_state(input=total), y=x))

    specs = [mb.StateTensorSpec((2,), dtype=types.fp16), mb.TensorSpec((2,), dtype=types.fp16)]
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(build)
    loaded = load(mil.save(program, tmp_path / "m.mlpackage", target="iOS18", fp16=True))
    state, x = loaded.make_state(), np.array([1, 2], np.float16)
    for turn in (1, 2):
        np.testing.assert_array_equal(next(iter(loaded.run({"x": x}, state=state).values())), turn * x)
    np.testing.assert_array_equal(next(iter(run_package(tmp_path / "m.mlpackage", {"x": x}).values())), x)


def test_several_functions_in_a_package(mil, tmp_path):
    ct = mil.ct
    for name, factor in (("double", 2), ("triple", 3)):
        program = mil.build(lambda x: mil.mb.mul(x=x, y=np.float32(factor)), [np.zeros(2, np.float32)], opset="iOS18")  # noqa: B023
        mil.save(program, tmp_path / f"{name}.mlpackage", target="iOS18")
    joined = ct.utils.MultiFunctionDescriptor()
    for name in ("double", "triple"):
        joined.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
    joined.default_function_name = "triple"
    with milproto.quiet():
        ct.utils.save_multifunction(joined, str(tmp_path / "both.mlpackage"))
    x = np.array([1, 2], np.float32)

    def value(**options):
        return next(iter(load(tmp_path / "both.mlpackage", **options).run({"x": x}).values()))

    np.testing.assert_array_equal(value(), 3 * x)
    np.testing.assert_array_equal(value(function="double"), 2 * x)
    with pytest.raises(UsageError, match="no function 'half'"):
        value(function="half")


# --- damage -------------------------------------------------------------------------------------------------------


def test_what_is_no_package(mil, tmp_path):
    with pytest.raises(ArtifactError, match="no model package"):
        load(tmp_path / "absent.mlpackage")
    (tmp_path / "junk.mlmodel").write_bytes(b"\xff\xff\xff junk")
    with pytest.raises(ArtifactError, match="not a Core ML specification"):
        load(tmp_path / "junk.mlmodel")
    with pytest.raises(ConversionError, match="MIL program"):
        from_mil("no program")


def test_a_neural_network_is_refused(mil, tmp_path):
    model = mil.ct.proto.Model_pb2.Model()
    model.specificationVersion = 4
    model.neuralNetwork.SetInParent()
    (tmp_path / "old.mlmodel").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="neuralNetwork"):
        load(tmp_path / "old.mlmodel")


ROOT = {"rootModelIdentifier": "a"}


@pytest.mark.parametrize(
    "content",
    [
        *[[], None, {}, ROOT, {**ROOT, "itemInfoEntries": []}, {**ROOT, "itemInfoEntries": {"b": {"path": "m"}}}],
        *[
            {**ROOT, "itemInfoEntries": {"a": {"path": path}}}
            for path in (7, "\x00", "x" * 300, "../../m", "/etc/hosts")
        ],
        {"rootModelIdentifier": {}, "itemInfoEntries": {}},
    ],
    ids=str,
)
def test_a_packages_manifest_that_somebody_wrote(tmp_path, content):
    (tmp_path / "Data").mkdir()
    (tmp_path / "Manifest.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"Manifest\.json|the package has no"):
        locate(tmp_path)


def test_damaged_manifest_missing_weights_and_paths_outside(mil, tmp_path, rng):
    weight = rng.normal(size=(64, 64)).astype(np.float32)
    program = mil.build(lambda x: mil.mb.linear(x=x, weight=weight), [np.zeros((1, 64), np.float32)])
    path = mil.save(program, tmp_path / "m.mlpackage")
    manifest = path / "Manifest.json"
    content = manifest.read_text()
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    blob = weights.read_bytes()
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"weight\.bin"):
        load(path)
    weights.write_bytes(blob)
    changed = json.loads(content)
    changed["itemInfoEntries"][changed["rootModelIdentifier"]]["path"] = "../../../etc/passwd"
    manifest.write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match="outside"):
        load(path)
    manifest.write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        load(path)
    manifest.write_text(content)
    assert load(path).ops() == {"linear": 1}


def test_an_unknown_op_is_named_with_its_output_and_version(mil, tmp_path):
    path = mil.save(simple(mil), tmp_path / "m.mlpackage")
    file = path / "Data/com.apple.CoreML/model.mlmodel"
    model = milproto.read_specification(file)
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        if operation.type == "mul":
            operation.type = "frobnicate"
            output = operation.outputs[0].name
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedOpError, match="frobnicate") as error:
        load(path)
    assert (error.value.op_type, error.value.output, error.value.specification_version) == ("frobnicate", output, 8)
    assert isinstance(error.value, ConversionError) and error.value.exit_code == 4


def test_a_dialect_op_in_memory_is_named(mil):
    x = np.zeros(3, np.float32)
    program = mil.build(lambda x: mil.mb.complex_abs(x=mil.mb.complex(real_data=x, imag_data=x)), [x])
    with pytest.raises(UnsupportedOpError, match="'complex'"):
        from_mil(program)


def test_another_version_of_coremltools_is_refused(mil, monkeypatch):
    monkeypatch.setattr(mil.ct, "__version__", "9.1")
    with pytest.raises(MissingDependencyError, match=r"9\.0"):
        milproto.import_coremltools()


# --- command line -------------------------------------------------------------------------------------------------


def test_command_line(mil, tmp_path, capsys):
    path = mil.save(simple(mil), tmp_path / "m.mlpackage")
    x = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    np.save(tmp_path / "x.npy", x)
    assert command([str(path), "--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "out")]) == 0
    assert "float32[1, 3, 4, 4]" in capsys.readouterr().out
    (saved,) = (tmp_path / "out").glob("*.npy")
    np.testing.assert_array_equal(np.load(saved), 2 * x)
    assert command([str(path), "--ops"]) == 0 and "1 mul" in capsys.readouterr().out
    assert command([str(path), "--input", f"y={tmp_path / 'x.npy'}"]) == 2 and "'y'" in capsys.readouterr().err
    assert command([str(path), "--input", str(tmp_path / "none.npy")]) == 9
    assert command([str(tmp_path / "none.mlpackage")]) == 9


def test_module_runs_quietly_in_a_process_of_its_own(mil, tmp_path):
    path = mil.save(simple(mil), tmp_path / "m.mlpackage")
    np.save(tmp_path / "x.npy", np.ones((1, 3, 4, 4), np.float32))
    arguments = ["-m", "deploykit_targets.coreml.mil_evaluator", str(path), "--input", str(tmp_path / "x.npy")]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "float32[1, 3, 4, 4]" in done.stdout and done.stderr == ""
