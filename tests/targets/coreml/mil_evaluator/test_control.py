"""Control flow, lists, state, labels, and the life of values."""

import numpy as np
import pytest

from deploykit.contract.errors import UsageError
from deploykit_targets.coreml.mil_evaluator import EvaluationError, UnsupportedOpError, executor, from_mil
from deploykit_targets.coreml.mil_evaluator.operation import Settings


def one(value, dtype=np.float32):
    return np.array([value], dtype)


@pytest.mark.parametrize("flag", [True, False])
def test_cond(mil, flag):
    mb = mil.mb

    def build(p, x):
        return mb.cond(
            pred=mb.squeeze(x=p),
            _true_fn=lambda: (mb.add(x=x, y=1.0), mb.mul(x=x, y=2.0)),
            _false_fn=lambda: (mb.add(x=x, y=-1.0), mb.mul(x=x, y=-2.0)),
        )

    a, b = mil.evaluate("cond", build, np.array([flag]), one(5))
    assert (a, b) == ((6, 10) if flag else (4, -10))


def test_while_loop_sees_values_around_it(mil):
    mb = mil.mb

    def build(base, times):
        result, _ = mb.while_loop(
            _cond=lambda r, i: mb.less(x=i, y=times),
            _body=lambda r, i: (mb.mul(x=r, y=base), mb.add(x=i, y=np.float32(1))),
            loop_vars=([1.0], [0.0]),
        )
        return result

    assert mil.evaluate("while_loop", build, one(2), one(10)) == 1024
    assert mil.evaluate("while_loop", build, one(2), one(0)) == 1


def test_nested_loops(mil):
    mb = mil.mb

    def build(x, y):
        two, unit = mb.const(val=[2.0]), mb.const(val=[1.0])

        def body(i, j):
            inner = mb.while_loop(
                _cond=lambda i: mb.less(x=mb.mul(x=two, y=i), y=mb.add(x=i, y=two)),
                _body=lambda i: mb.add(x=i, y=unit),
                loop_vars=(i,),
            )
            return mb.add(x=inner, y=two), j

        return mb.while_loop(_cond=lambda i, j: mb.less(x=i, y=j), _body=body, loop_vars=(x, y))

    i, j = 0.0, 10.0
    while i < j:
        while 2 * i < i + 2:
            i += 1
        i += 2
    got = mil.evaluate("while_loop", build, one(0), one(10))
    assert [v.item() for v in got] == [i, j]


def test_lists(mil):
    mb = mil.mb

    def build(a, b):
        ls = mb.make_list(init_length=2, elem_shape=(2,))
        first = mb.list_read(ls=ls, index=0)
        ls = mb.list_write(ls=ls, index=0, value=a)
        ls = mb.list_write(ls=ls, index=4, value=b)
        ls = mb.list_scatter(ls=ls, indices=[2, 1], value=np.array([[-1, -2], [-4, -5]], np.float32))
        return first, mb.list_read(ls=ls, index=0), mb.list_gather(ls=ls, indices=[4, 2, 3]), mb.list_length(ls=ls)

    a, b = np.array([1, 3], np.float32), np.array([2, 4], np.float32)
    program = from_mil(mil.build(build, [a, b]))
    assert {"make_list", "list_write", "list_read", "list_scatter", "list_gather"} <= set(program.ops())
    first, read, gathered, length = program.run({"a": a, "b": b}).values()
    np.testing.assert_array_equal(first, [0, 0])
    np.testing.assert_array_equal(read, a)
    np.testing.assert_array_equal(gathered, [b, [-1, -2], [0, 0]])
    assert length == 5


def test_a_list_that_grows_in_a_loop(mil):
    mb = mil.mb

    def build(times, update):
        def body(i, ls):
            scaled = mb.mul(x=update, y=mb.cast(x=i, dtype="fp32"))
            return mb.add(x=i, y=1), mb.list_write(ls=ls, index=i, value=scaled)

        _, ls = mb.while_loop(
            _cond=lambda i, ls: mb.less(x=i, y=mb.squeeze(x=times)),
            _body=body,
            loop_vars=(0, mb.make_list(init_length=1, elem_shape=(2,))),
        )
        return mb.list_gather(ls=ls, indices=[0, 2]), mb.list_length(ls=ls)

    update = np.array([1, 2], np.float32)
    rows, length = mil.evaluate("while_loop", build, one(3, np.int32), update)
    np.testing.assert_array_equal(rows, [0 * update, 2 * update])
    assert length == 3


def test_reading_outside_a_list_is_refused(mil):
    def build(i):
        return mil.mb.list_read(ls=mil.mb.make_list(init_length=2, elem_shape=(1,)), index=mil.mb.squeeze(x=i))

    with pytest.raises(EvaluationError, match="list of length 2"):
        mil.evaluate("list_read", build, one(2, np.int32))


@pytest.mark.parametrize("labels", [["cat", "dog", "eel"], [np.int64(7), np.int64(8), np.int64(9)]])
def test_classify(mil, labels):
    from coremltools.converters.mil.mil import mil_list

    x = np.array([[0.1, 0.7, 0.2]], np.float32)
    build = lambda x: mil.mb.classify(probabilities=x, classes=mil.mb.const(val=mil_list(labels)))  # noqa: E731
    label, probabilities = mil.evaluate("classify", build, x)
    assert label.shape == () and label.item() == labels[1]
    np.testing.assert_array_equal(probabilities, x[0])
    program = from_mil(mil.build(build, [x]))
    assert program.outputs[1].classes == tuple(labels)


# --- state --------------------------------------------------------------------------------------------------------


def counter(mil):
    mb, types = mil.mb, mil.types

    def build(total, x):
        updated = mb.coreml_update_state(state=total, value=mb.add(x=mb.read_state(input=total), y=x))
        return mb.mul(x=updated, y=np.float16(2)), mb.read_state(input=total)

    specs = [mb.StateTensorSpec((2,), dtype=types.fp16), mb.TensorSpec((2,), dtype=types.fp16)]
    return mb.program(input_specs=specs, opset_version=mil.ct.target.iOS18)(build)


def test_state_is_read_written_and_kept(mil):
    program = from_mil(counter(mil))
    assert [spec.name for spec in program.states] == ["total"] and [spec.name for spec in program.inputs] == ["x"]
    assert {"read_state", "coreml_update_state"} <= set(program.ops())
    state, x = program.make_state(), np.array([1, 2], np.float16)
    for turn in (1, 2, 3):
        doubled, kept = program.run({"x": x}, state=state).values()
        np.testing.assert_array_equal(kept, turn * x)
        np.testing.assert_array_equal(doubled, 2 * turn * x)
    np.testing.assert_array_equal(state.read("total"), 3 * x)
    state.write("total", np.array([10, 20], np.float16))
    np.testing.assert_array_equal(program.run({"x": x}, state=state)[program.outputs[1].name], [11, 22])


def test_a_stateful_model_asks_for_its_state(mil):
    program = from_mil(counter(mil))
    with pytest.raises(UsageError, match="make_state"):
        program.run({"x": np.zeros(2, np.float16)})
    with pytest.raises(UsageError, match="no state 'other'"):
        program.make_state().read("other")
    with pytest.raises(UsageError, match="shape"):
        program.make_state().write("total", np.zeros(3, np.float16))


# --- memory -------------------------------------------------------------------------------------------------------


def test_values_are_freed_after_their_last_use(mil):
    def build(x):
        for _ in range(20):
            x = mil.mb.exp(x=mil.mb.sin(x=x))
        return x

    program = from_mil(mil.build(build, [one(0.5)]))
    frame = executor.Frame({}, {}, Settings(), program.specification_version)
    plan = program._plan
    tensors = program._tensors({"x": one(0.5)})
    executor.run(plan, {}, {plan.inputs[name]: value for name, value in tensors.items()}, frame)
    assert frame.peak_values == 2 and len(frame.values) == 1


def test_values_of_a_loop_body_do_not_outlive_it(mil):
    mb = mil.mb

    def build(x):
        return mb.while_loop(
            _cond=lambda i: mb.less(x=i, y=np.float32(50)),
            _body=lambda i: mb.add(x=mb.mul(x=i, y=np.float32(1)), y=np.float32(1)),
            loop_vars=(x,),
        )

    program = from_mil(mil.build(build, [one(0)]))
    frame = executor.Frame({}, {}, Settings(), program.specification_version)
    plan = program._plan
    tensors = program._tensors({"x": one(0)})
    result = executor.run(plan, {}, {plan.inputs[name]: value for name, value in tensors.items()}, frame)
    assert float(result[0]) == 50 and frame.peak_values <= 4 and len(frame.values) == 1


def test_a_constant_of_symbols_has_a_value_where_all_are_known(mil):
    """`_const_symbolic` lives in memory only; what it does not know, nobody can evaluate."""
    mb = mil.mb
    x = np.arange(6, dtype=np.float32).reshape(2, 3)

    def build(x, sizes):
        return mb.add(x=x, y=mb.cast(x=mb._const_symbolic(val=sizes), dtype="fp32"))

    program = mil.build(lambda x: build(x, np.array([10, 20, 30], np.int32)), [x])
    (got,) = from_mil(program).run({"x": x}).values()
    np.testing.assert_array_equal(got, x + np.array([10, 20, 30]))
    unknown = mil.build(lambda x: build(x, np.array([mil.symbol(), 3, 4])), [x])
    with pytest.raises(UnsupportedOpError, match=r"'_const_symbolic'.*sizes that nothing binds"):
        from_mil(unknown)
