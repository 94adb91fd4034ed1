"""Native recurrent ops against PyTorch's modules where the definitions agree, and NumPy loops where they do not."""

import numpy as np
import pytest
import torch

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
S, B, FEATURES, H = 5, 2, 3, 4
ACTS = {
    "tanh": np.tanh,
    "scaled_tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}


def f32(array):
    return np.asarray(array, np.float32)


def sequence(rng, dtype=np.float32):
    return rng.normal(size=(S, B, FEATURES)).astype(dtype), rng.normal(size=(B, H)).astype(dtype)


def weights(rng, gates, inputs=FEATURES):
    return [f32(rng.uniform(-1, 1, shape)) for shape in ((gates * H, inputs), (gates * H, H), (gates * H,))]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_rnn(mil, rng, direction, whole, activation):
    (x, h), (wi, wh, b) = sequence(rng), weights(rng, 1)

    def build(x, h):
        return mil.mb.rnn(
            x=x, initial_h=h, weight_ih=wi, weight_hh=wh, bias=b, direction=direction, output_sequence=whole,
            activation=activation,
        )  # fmt: skip

    states, state = [], h
    for step in x[::-1] if direction == "reverse" else x:
        state = ACTS[activation](step @ wi.T + state @ wh.T + b)
        states.append(state)
    got, last = mil.evaluate("rnn", build, x, h)
    np.testing.assert_allclose(got, states if whole else states[-1:], **CLOSE)
    np.testing.assert_allclose(last, state, **CLOSE)


def gru_reference(x, h, wi, wh, b, input_bias, reset_after, act="tanh", gate="sigmoid"):
    (ir, io, iz), (hr, ho, hz), (br, bo, bz) = np.split(wi, 3), np.split(wh, 3), np.split(b, 3)
    jr, jo, jz = np.split(input_bias, 3)
    states = []
    for step in x.astype(np.float64):
        r = ACTS[gate](step @ ir.T + jr + h @ hr.T + br)
        z = ACTS[gate](step @ iz.T + jz + h @ hz.T + bz)
        inner = r * (h @ ho.T + bo) if reset_after else (r * h) @ ho.T + bo
        h = (1 - z) * ACTS[act](step @ io.T + jo + inner) + z * h
        states.append(h)
    return np.array(states), h


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("act", "gate"), [("tanh", "sigmoid"), ("sigmoid", "tanh")])
@pytest.mark.parametrize("biased", [True, False])
def test_gru_resets_before_the_product(mil, rng, direction, act, gate, biased):
    (x, h), (wi, wh, b) = sequence(rng), weights(rng, 3)
    options = {"bias": b} if biased else {}

    def build(x, h):
        return mil.mb.gru(
            x=x, initial_h=h, weight_ih=wi, weight_hh=wh, direction=direction, output_sequence=True,
            activation=act, recurrent_activation=gate, **options,
        )  # fmt: skip

    fed = x[::-1] if direction == "reverse" else x
    want, last = gru_reference(fed, h, wi, wh, b if biased else 0 * b, 0 * b, False, act, gate)
    got, state = mil.evaluate("gru", build, x, h)
    np.testing.assert_allclose(got, want, **CLOSE)
    np.testing.assert_allclose(state, last, **CLOSE)


def test_gru_of_ios18_with_reset_after_is_pytorch(mil, rng):
    (x, h), (wi, wh, b), other = sequence(rng), weights(rng, 3), weights(rng, 3)[2]

    def build(x, h):
        return mil.mb.gru(
            x=x, initial_h=h, weight_ih=wi, weight_hh=wh, bias=b, input_bias=other, reset_after=True,
            output_sequence=True,
        )  # fmt: skip

    got, last = mil.evaluate("gru", build, x, h, opset="iOS18")
    module = torch.nn.GRU(FEATURES, H)
    order = lambda m: torch.from_numpy(np.concatenate([np.split(m, 3)[i] for i in (0, 2, 1)]))  # noqa: E731 - r, z, n
    with torch.no_grad():
        for name, value in (("weight_ih_l0", wi), ("weight_hh_l0", wh), ("bias_ih_l0", other), ("bias_hh_l0", b)):
            getattr(module, name).copy_(order(value))
        want, state = module(torch.from_numpy(x), torch.from_numpy(h)[None])
    np.testing.assert_allclose(got, want.numpy(), **CLOSE)
    np.testing.assert_allclose(last, state[0].numpy(), **CLOSE)


def ifoz(array):
    """PyTorch's gate order (input, forget, cell, output) in MIL's."""
    i, f, z, o = np.split(array.detach().numpy(), 4)
    return np.concatenate([i, f, o, z])


def lstm_weights(module, suffix=""):
    state = module.state_dict()
    bias = ifoz(state[f"bias_ih_l0{suffix}"]) + ifoz(state[f"bias_hh_l0{suffix}"])
    return ifoz(state[f"weight_ih_l0{suffix}"]), ifoz(state[f"weight_hh_l0{suffix}"]), bias


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("whole", [True, False])
def test_lstm_is_pytorch(mil, rng, direction, whole):
    torch.manual_seed(3)
    module, (x, h), c = torch.nn.LSTM(FEATURES, H), sequence(rng), f32(rng.normal(size=(B, H)))
    wi, wh, b = lstm_weights(module)

    def build(x, h, c):
        return mil.mb.lstm(
            x=x, initial_h=h, initial_c=c, weight_ih=wi, weight_hh=wh, bias=b, direction=direction,
            output_sequence=whole,
        )  # fmt: skip

    fed = torch.from_numpy(x[::-1].copy() if direction == "reverse" else x)
    with torch.no_grad():
        want, (hn, cn) = module(fed, (torch.from_numpy(h)[None], torch.from_numpy(c)[None]))
    got, last_h, last_c = mil.evaluate("lstm", build, x, h, c)
    np.testing.assert_allclose(got, want.numpy() if whole else want[-1:].numpy(), **CLOSE)
    np.testing.assert_allclose(last_h, hn[0].numpy(), **CLOSE)
    np.testing.assert_allclose(last_c, cn[0].numpy(), **CLOSE)


@pytest.mark.parametrize("whole", [True, False])
def test_bidirectional_lstm_is_pytorch(mil, rng, whole):
    torch.manual_seed(4)
    module, x = torch.nn.LSTM(FEATURES, H, bidirectional=True), sequence(rng)[0]
    h, c = f32(rng.normal(size=(B, 2 * H))), f32(rng.normal(size=(B, 2 * H)))
    wi, wh, b = lstm_weights(module)
    wi_back, wh_back, b_back = lstm_weights(module, "_reverse")

    def build(x, h, c):
        return mil.mb.lstm(
            x=x, initial_h=h, initial_c=c, weight_ih=wi, weight_hh=wh, bias=b, weight_ih_back=wi_back,
            weight_hh_back=wh_back, bias_back=b_back, direction="bidirectional", output_sequence=whole,
        )  # fmt: skip

    both = lambda a: torch.from_numpy(np.stack(np.split(a, 2, -1)))  # noqa: E731
    with torch.no_grad():
        want, (hn, cn) = module(torch.from_numpy(x), (both(h), both(c)))
    got, last_h, last_c = mil.evaluate("lstm", build, x, h, c)
    if whole:
        np.testing.assert_allclose(got, want.numpy(), **CLOSE)
    else:
        np.testing.assert_allclose(got[0], np.concatenate([want[-1, :, :H], want[0, :, H:]], -1), **CLOSE)
    np.testing.assert_allclose(last_h, np.concatenate(list(hn.numpy()), -1), **CLOSE)
    np.testing.assert_allclose(last_c, np.concatenate(list(cn.numpy()), -1), **CLOSE)


@pytest.mark.parametrize("clip", [50.0, 0.05])
@pytest.mark.parametrize("activation", ["relu", "scaled_tanh", "hard_sigmoid", "linear"])
def test_lstm_with_peepholes_clip_and_other_activations(mil, rng, clip, activation):
    (x, h), c, (wi, wh, b) = sequence(rng), f32(rng.normal(size=(B, H))), weights(rng, 4)
    peep = f32(rng.uniform(-1, 1, 3 * H))

    def build(x, h, c):
        return mil.mb.lstm(
            x=x, initial_h=h, initial_c=c, weight_ih=wi, weight_hh=wh, bias=b, peephole=peep, output_sequence=True,
            recurrent_activation="sigmoid", cell_activation="tanh", activation=activation, clip=np.float32(clip),
        )  # fmt: skip

    p_i, p_f, p_o = np.split(peep, 3)
    states, hidden, cell = [], h, c
    for step in x.astype(np.float64):
        i, f, o, z = np.split(step @ wi.T + hidden @ wh.T + b, 4, -1)
        cell = ACTS["sigmoid"](f + p_f * cell) * cell + ACTS["sigmoid"](i + p_i * cell) * np.tanh(z)
        cell = np.clip(cell, -clip, clip)
        hidden = ACTS["sigmoid"](o + p_o * cell) * ACTS[activation](cell)
        states.append(hidden)
    got, _, last_c = mil.evaluate("lstm", build, x, h, c)
    np.testing.assert_allclose(got, states, **CLOSE)
    np.testing.assert_allclose(last_c, cell, **CLOSE)


def test_half_precision_lstm_rounds_its_results_only(mil, rng):
    (x, h), (wi, wh, b) = sequence(rng, np.float16), (w.astype(np.float16) for w in weights(rng, 4))

    def build(x, h, c):
        return mil.mb.lstm(x=x, initial_h=h, initial_c=c, weight_ih=wi, weight_hh=wh, bias=b, output_sequence=True)

    got = mil.evaluate("lstm", build, x, h, h)[0]
    wide = [value.astype(np.float32) for value in (x, h, wi, wh, b)]

    def build_wide(x, h, c):
        return mil.mb.lstm(
            x=x, initial_h=h, initial_c=c, weight_ih=wide[2], weight_hh=wide[3], bias=wide[4], output_sequence=True
        )

    want = mil.evaluate("lstm", build_wide, wide[0], wide[1], wide[1])[0].astype(np.float16)
    np.testing.assert_array_equal(got, want)
