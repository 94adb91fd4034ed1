"""The losses against NumPy, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import deploykit
from deploykit_training.distillation.terms import Feature, Relation, Response, Seen, Terms

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_response_is_the_divergence_of_softened_answers_times_the_square_of_the_temperature(temperature: float) -> None:
    s, t = draw(5, 7), draw(5, 7)
    p, q = softmax(t.double().numpy() / temperature), softmax(s.double().numpy() / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert float(Response(temperature)(Seen(s), Seen(t))) == pytest.approx(expected, rel=1e-5)  # float32
    assert float(Response(temperature)(Seen(t), Seen(t))) == pytest.approx(0, abs=1e-6)


def test_gradients_keep_their_size_whatever_the_temperature() -> None:
    sizes = []
    for temperature in (10.0, 100.0):
        s = draw(4, 6).mul_(0.1).requires_grad_()
        with torch.random.fork_rng():
            t = torch.linspace(-0.1, 0.1, 24).view(4, 6)
        Response(temperature)(Seen(s), Seen(t)).backward()
        assert s.grad is not None
        sizes.append(float((s.grad / (s.detach() - t)).abs().median()))
    assert sizes[0] == pytest.approx(sizes[1], rel=1.0)  # without T^2 they are 100 times apart


def test_feature_projects_other_widths_and_averages_larger_maps() -> None:
    term = Feature({"a": "b"})
    s, t = draw(2, 3, 8, 8).requires_grad_(), draw(2, 5, 4, 4)
    loss = term(Seen(s, {"a": s}), Seen(t, {"b": t}))
    weight = term.projections[0].weight
    projected = np.einsum("oc,nchw->nohw", weight.detach().numpy(), s.detach().numpy())
    small = projected.reshape(2, 5, 4, 2, 4, 2).mean((3, 5))
    assert loss.item() == pytest.approx(((small - t.numpy()) ** 2).mean(), rel=1e-5)
    loss.backward()
    assert weight.grad is not None and s.grad is not None and bool(weight.grad.abs().sum() > 0)


def test_feature_of_equal_widths_has_nothing_to_train() -> None:
    term = Feature({"a": "b"})
    s, t = draw(2, 6, 3), draw(2, 6, 3)
    assert float(term(Seen(s, {"a": s}), Seen(t, {"b": t}))) == pytest.approx(float((s - t).square().mean()))
    assert all(p.numel() == 0 for p in term.parameters())


def test_an_optimizer_may_be_made_before_shapes_are_known() -> None:
    term = Feature({"a": "b"})
    optimizer = torch.optim.SGD(term.parameters(), 0.1)
    s, t = draw(4, 3), draw(4, 5)
    first = term(Seen(s, {"a": s}), Seen(t, {"b": t}))
    first.backward()
    optimizer.step()
    assert term(Seen(s, {"a": s}), Seen(t, {"b": t})).item() < first.item()


def huber(x: np.ndarray, y: np.ndarray) -> float:
    d = np.abs(x - y)
    return float(np.where(d < 1, 0.5 * d * d, d - 0.5).mean())


def distances(x: np.ndarray) -> np.ndarray:
    found = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    return found / found[~np.eye(len(x), dtype=bool)].mean()


def angles(x: np.ndarray) -> np.ndarray:
    lines = x[None] - x[:, None]
    size = np.sqrt((lines**2).sum(2, keepdims=True))
    lines = np.divide(lines, size, out=np.zeros_like(lines), where=size > 0)
    return np.einsum("iad,ibd->iab", lines, lines)


def test_relation_is_distances_and_angles_between_samples() -> None:
    s, t = draw(6, 4), draw(6, 9)
    a, b = s.double().numpy(), t.double().numpy()
    assert float(Relation(1, 0)(Seen(s), Seen(t))) == pytest.approx(huber(distances(a), distances(b)), rel=1e-3)
    assert float(Relation(0, 1)(Seen(s), Seen(t))) == pytest.approx(huber(angles(a), angles(b)), rel=1e-3)
    assert float(Relation()(Seen(s), Seen(s * 3 + 1))) == pytest.approx(0, abs=1e-5)  # neither place nor scale matters


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_relation_of_few_samples_and_of_equal_ones_has_finite_gradients(rows: int) -> None:
    s = torch.ones(rows, 3, requires_grad=True)
    Relation()(Seen(s), Seen(draw(rows, 3))).backward()
    assert s.grad is not None and bool(torch.isfinite(s.grad).all())


def test_terms_are_added_and_weighted() -> None:
    first = Response()
    both = 0.5 * (first + Relation()) + 2 * Feature({"a": "b"})
    assert isinstance(both, Terms)
    assert [(name, part.weight) for name, part in both.parts()] == [
        ("response", 0.5),
        ("relation", 0.5),
        ("feature", 2.0),
    ]
    assert first.weight == 1.0 and both.student_modules == ("a",) and both.teacher_modules == ("b",)
    twice = Feature({"a": "b"}) + Feature({"c": "d"})
    assert [name for name, _ in twice.parts()] == ["feature", "feature2"]
    s, t = draw(3, 4), draw(3, 4)
    whole = (first + 3 * Relation())(Seen(s), Seen(t))
    assert float(whole) == pytest.approx(float(first(Seen(s), Seen(t)) + 3 * Relation()(Seen(s), Seen(t))))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(deploykit.UsageError, match="temperature is above 0"):
        Response(0.0)
    with pytest.raises(deploykit.UsageError, match="alpha from 0 to 1"):
        Response(alpha=1.5)
    with pytest.raises(deploykit.UsageError, match="no class is like another"):
        Response()(Seen(draw(2, 3)), Seen(draw(2, 4)))
    with pytest.raises(deploykit.UsageError, match="paths of modules"):
        Feature({})
    with pytest.raises(deploykit.UsageError, match="one pair"):
        Relation(modules={"a": "b", "c": "d"})
    term = Feature({"a": "b"})
    with pytest.raises(deploykit.UsageError, match="same number of axes"):
        term(Seen(draw(1, 2), {"a": draw(2, 3)}), Seen(draw(1, 2), {"b": draw(2, 3, 4, 4)}))
    with pytest.raises(deploykit.UsageError, match="same places"):
        term(Seen(draw(1, 2), {"a": draw(2, 3, 4)}), Seen(draw(1, 2), {"b": draw(2, 5, 4)}))
    assert isinstance(term, nn.Module)
