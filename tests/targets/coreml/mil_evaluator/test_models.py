"""Small PyTorch models converted by plain coremltools, evaluated, and compared with PyTorch.

float32 packages agree to 1e-5; float16 packages to the rounding of every activation (1e-2 of the output's scale is
generous: a few thousandths are seen); compressed packages are compared with the model whose weights were replaced by
the decompressed ones, so that the comparison is as sharp as the float one.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator import load
from deploykit_targets.coreml.mil_evaluator.milproto import quiet


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.one, self.two, self.head = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, 2, 1)
        x = F.relu(x + self.two(F.relu(self.one(x))))
        return self.head(x.mean((2, 3)))


class Mobile(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.deep, self.shrink = (
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 16, 3, 2, 1, groups=16),
            nn.Conv2d(16, 8, 1),
        )

    def forward(self, x):
        return F.avg_pool2d(self.shrink(F.hardswish(self.deep(F.hardswish(self.expand(x))))), 2)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(50, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = (t.view(1, -1, 4, 8).transpose(1, 2) for t in self.qkv(self.first(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1, 32)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.second(x))))


class TwoInTwoOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, a, b):
        joined = self.linear(a) * torch.sigmoid(b)
        return joined, torch.cat([joined, b], -1).cumsum(-1)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(6, 8, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


def example(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


MODELS = {
    "residual": (Residual, [example(1, 3, 32, 32)]),
    "mobile": (Mobile, [example(1, 3, 16, 16)]),
    "transformer": (Transformer, [torch.arange(7, dtype=torch.int32)[None]]),
    "two in, two out": (TwoInTwoOut, [example(2, 4), example(2, 3)]),
}


def seeded(build):
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def exported(model, inputs):
    with quiet(), torch.no_grad():
        return torch.export.export(model, tuple(inputs)).run_decompositions({})


def answers(model, inputs):
    with torch.no_grad():
        result = model(*inputs)
    return [t.numpy() for t in (result if isinstance(result, tuple) else (result,))]


def compare(program, model, inputs, tolerance):
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(program.inputs, inputs, strict=True)}
    for got, want in zip(program.run(feeds).values(), answers(model, inputs), strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.fixture(scope="module")
def packages(mil, tmp_path_factory):
    """Converts a model once per precision, for all tests of this file."""
    made, folder = {}, tmp_path_factory.mktemp("models")

    def package(name, fp16=False, target="iOS17"):
        key = (name, fp16, target)
        if key not in made:
            build, inputs = MODELS[name]
            path = folder / f"{len(made)}.mlpackage"
            made[key] = mil.save(exported(seeded(build), inputs), path, fp16=fp16, target=target)
        return made[key]

    return package


@pytest.mark.parametrize("name", MODELS)
def test_float32(packages, name):
    build, inputs = MODELS[name]
    compare(load(packages(name)), seeded(build), inputs, 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_float16(packages, name):
    build, inputs = MODELS[name]
    compare(load(packages(name, fp16=True)), seeded(build), inputs, 5e-3)


@pytest.mark.parametrize(("kind", "op"), [(nn.LSTM, "lstm"), (nn.GRU, "while_loop")])
def test_recurrent_models_by_trace(mil, tmp_path, kind, op):
    model, x = seeded(lambda: Recurrent(kind)), example(1, 5, 6)
    with quiet():
        traced = torch.jit.trace(model, x)
    path = mil.save(traced, tmp_path / "m.mlpackage", inputs=[mil.ct.TensorType("x", shape=x.shape)])
    program = load(path)
    assert op in program.ops()
    compare(program, model, [x], 1e-5)


def test_dynamic_batch(mil, tmp_path):
    model, x = seeded(Residual), example(2, 3, 32, 32)
    with quiet(), torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=8)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).run_decompositions({})
    loaded = load(mil.save(program, tmp_path / "m.mlpackage"))
    for count in (1, 2, 5):
        compare(loaded, model, [example(count, 3, 32, 32)], 1e-5)


class Cache(nn.Module):
    """Attention over a cache that the model keeps itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(1, 8, 4))
        self.query = nn.Linear(4, 4)

    def forward(self, x):
        self.cache[:, 1:] = self.cache[:, :-1].clone()
        self.cache[:, :1] = x
        return (self.query(x) @ self.cache.transpose(1, 2)).softmax(-1) @ self.cache


def test_stateful_model(mil, tmp_path):
    """The state is float16 in the package, so steps of a few thousandths of the values are expected."""
    ct, model, x = mil.ct, seeded(Cache), example(1, 1, 4)
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(seeded(Cache), x)
    state = ct.StateType(wrapped_type=ct.TensorType(shape=(1, 8, 4), dtype=np.float16), name="cache")
    options = {"inputs": [ct.TensorType("x", shape=(1, 1, 4))], "states": [state], "target": "iOS18"}
    program = load(mil.save(traced, tmp_path / "m.mlpackage", **options))
    memory = program.make_state()
    for step in range(4):
        fed = x + step
        (got,) = program.run({"x": fed.numpy()}, state=memory).values()
        (want,) = answers(model, [fed])
        np.testing.assert_allclose(got, want, atol=5e-3)
    np.testing.assert_allclose(memory.read("cache"), model.cache.numpy(), atol=2e-3)


class Halving(nn.Module):
    """A loop whose length depends on the values, and a branch behind it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.zeros(1)
        while bool(x.abs().sum() > 1.0):
            x = x * 0.5
            steps = steps + 1.0
        return x + steps if bool(steps.sum() > 3.0) else x - steps


def test_control_flow_of_a_scripted_model(mil, tmp_path):
    with quiet():
        scripted = torch.jit.script(Halving().eval())
    x = example(1, 4)
    program = load(mil.save(scripted, tmp_path / "m.mlpackage", inputs=[mil.ct.TensorType("x", shape=x.shape)]))
    assert program.ops()["while_loop"] == 1 and program.ops()["cond"] == 1
    for scale in (0.01, 1.0, 100.0):
        compare(program, Halving(), [x * scale], 1e-5)


def test_a_classifier_of_plain_coremltools(mil, tmp_path):
    model, x, labels = seeded(Residual), example(1, 3, 32, 32), ["a", "b", "c", "d", "e"]
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(nn.Sequential(model, nn.Softmax(1)), x)
    options = {
        "inputs": [mil.ct.TensorType("x", shape=x.shape)],
        "classifier_config": mil.ct.ClassifierConfig(labels),
    }
    program = load(mil.save(traced, tmp_path / "m.mlpackage", **options))
    label, probabilities = program.run({"x": x.numpy()}).values()
    (want,) = answers(nn.Sequential(model, nn.Softmax(1)), [x])
    np.testing.assert_allclose(probabilities, want[0], atol=1e-5)
    assert program.ops()["classify"] == 1 and str(label) == labels[int(want.argmax())]


# --- compressed weights -------------------------------------------------------------------------------------------


def compressors(mil):
    opt = mil.ct.optimize.coreml
    linear, palette, prune = opt.OpLinearQuantizerConfig, opt.OpPalettizerConfig, opt.OpMagnitudePrunerConfig
    whole = lambda config: opt.OptimizationConfig(global_config=config)  # noqa: E731
    quantize = lambda m, **o: opt.linear_quantize_weights(m, whole(linear(weight_threshold=0, **o)))  # noqa: E731
    return {
        "int8 per channel": ("iOS16", "constexpr_affine_dequantize", lambda m: quantize(m, mode="linear_symmetric")),
        "int8 affine": ("iOS16", "constexpr_affine_dequantize", lambda m: quantize(m, mode="linear")),
        "int4 per block": (
            "iOS18",
            "constexpr_blockwise_shift_scale",
            lambda m: quantize(m, mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=8),
        ),
        "palette of ios16": (
            "iOS16",
            "constexpr_lut_to_dense",
            lambda m: opt.palettize_weights(m, whole(palette(mode="uniform", nbits=4, weight_threshold=0))),
        ),
        "grouped palette": (
            "iOS18",
            "constexpr_lut_to_dense",
            lambda m: opt.palettize_weights(
                m,
                whole(
                    palette(
                        mode="uniform", nbits=4, weight_threshold=0, granularity="per_grouped_channel", group_size=8
                    )
                ),
            ),
        ),
        "pruned": (
            "iOS16",
            "constexpr_sparse_to_dense",
            lambda m: opt.prune_weights(m, whole(prune(target_sparsity=0.6, weight_threshold=0))),
        ),
        "pruned of ios18": (
            "iOS18",
            "constexpr_sparse_to_dense",
            lambda m: opt.prune_weights(m, whole(prune(target_sparsity=0.6, weight_threshold=0))),
        ),
        "pruned, then palette": (
            "iOS18",
            "constexpr_lut_to_sparse",
            lambda m: opt.palettize_weights(
                opt.prune_weights(m, whole(prune(target_sparsity=0.6, weight_threshold=0))),
                whole(palette(mode="uniform", nbits=4, weight_threshold=0)),
                joint_compression=True,
            ),
        ),
    }


COMPRESSIONS = [
    "int8 per channel",
    "int8 affine",
    "int4 per block",
    "palette of ios16",
    "grouped palette",
    "pruned",
    "pruned of ios18",
    "pruned, then palette",
]


def decompressed_model(mil, model):
    """The same package with dense float weights, by coremltools' own decompressor."""
    with quiet():
        return mil.ct.optimize.coreml.decompress_weights(model)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights(mil, packages, tmp_path, name):
    """Equal to the package that coremltools decompressed itself, and near the float model as its bits allow."""
    target, op, compress = compressors(mil)[name]
    build, inputs = MODELS["residual"]
    with quiet():
        source = mil.ct.models.MLModel(str(packages("residual", target=target)), skip_model_load=True)
        small = compress(source)
        program = load(mil.write(small, tmp_path / "small.mlpackage"))
        dense = load(mil.write(decompressed_model(mil, small), tmp_path / "dense.mlpackage"))
    assert op in program.ops() and op not in dense.ops()
    feeds = {program.inputs[0].name: inputs[0].numpy()}
    (got,), (want,) = program.run(feeds).values(), dense.run(feeds).values()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    (float_model,) = answers(seeded(build), inputs)
    assert np.abs(got - float_model).max() < (0.05 if "int8" in name else 2.0)


def test_compressions_are_all_tried(mil):
    assert list(compressors(mil)) == COMPRESSIONS


def test_quantised_activations(mil, tmp_path):
    """A q/dq graph from PyTorch becomes quantize and dequantize ops; PyTorch runs the same graph."""
    import torch.ao.quantization.fx._decomposed

    ops = torch.ops.quantized_decomposed

    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = ops.quantize_per_tensor.default(x, 0.05, 3, -128, 127, torch.int8)
            x = self.conv(ops.dequantize_per_tensor.default(x, 0.05, 3, -128, 127, torch.int8))
            x = ops.quantize_per_tensor.default(x, 0.1, -5, -128, 127, torch.int8)
            return ops.dequantize_per_tensor.default(x, 0.1, -5, -128, 127, torch.int8)

    model, x = seeded(Quantised), example(1, 3, 8, 8)
    program = load(mil.save(exported(model, [x]), tmp_path / "m.mlpackage"))
    assert program.ops()["quantize"] == 2 and program.ops()["dequantize"] == 2
    (got,), (want,) = program.run({program.inputs[0].name: x.numpy()}).values(), answers(model, [x])
    steps = np.abs(got - want) / 0.1
    assert steps.max() < 1.01 and (steps > 0.5).mean() < 0.01  # a sum on the edge of a step may fall to either side
