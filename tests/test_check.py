"""The report of what breaks the sum, and the cancellation that a dtype can carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import PROGRAMS, input_and_reference
from zoo import CHOICES, LOOPS, SOFTMAX

import jaxlift

SOME = {p.name: p.fun for p in PROGRAMS[::9]} | dict(list((LOOPS | CHOICES | SOFTMAX).items())[::7])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", ["rescale", pytest.param("revealcancel", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOME)
@pytest.mark.sample(10)
def test_complete_programs_have_no_residual(name, rule):
    x, r = input_and_reference(jnp.float64)
    report = jaxlift.check(SOME[name], x, r, rule=rule)
    assert report.complete
    scale = max(abs(line.entered) for line in report.lines) + report.magnitude
    assert all(abs(line.residual) <= 1e5 * report.rounding * scale for line in report.lines)
    assert str(report).startswith("complete: contributions sum to")
    y, y_ref = map(float, map(jax.jit(SOME[name]), (x, r)))
    assert report.difference == pytest.approx(y - y_ref, rel=1e6 * report.rounding, abs=1e-12)


@pytest.mark.filterwarnings("ignore:the primitive `approx_top_k`")
@pytest.mark.usefixtures("x64")
def test_names_the_operation_and_the_line():
    def fun(x):
        return jnp.tanh(x).sum() + jax.lax.approx_max_k(jnp.outer(x, x).ravel(), 2)[0].sum()

    report = jaxlift.check(fun, *input_and_reference(jnp.float64))
    assert not report.complete
    text = str(report).splitlines()
    assert text[0].startswith("NOT complete")
    assert "approx_top_k" in text[2]
    assert "test_check.py" in text[2]
    assert sum(line.residual for line in report.lines) == pytest.approx(report.difference - report.contributions)


@pytest.mark.parametrize("after", [jnp.sum, lambda h: jnp.add(h, 1.0)[0], lambda h: h[0]])
def test_names_the_activation(after):
    """A rule that loses the sum is found where it does, whatever comes after."""

    class Half(jaxlift.Rule):
        def multiplier(self, f, x, r):
            return 0.5 * f.derivative(x)

    def fun(x):
        return after(x[::-1] + jnp.tanh(3 * x)) + jnp.log(jnp.exp(x).sum())

    report = jaxlift.check(fun, np.array([0.5, 0.2], np.float32), np.array([0.1, 0.1], np.float32), rule=Half())
    worst = max(report.lines, key=lambda line: abs(line.residual))
    assert worst.operation == "mul tanh"
    assert worst.residual == pytest.approx(report.difference - report.contributions, rel=1e-5)


def test_original_pooling_loses_the_sum_where_it_does():
    def fun(x):
        return jax.lax.reduce_window(x**3, -jnp.inf, jax.lax.max, (2,), (2,), "VALID").sum()

    x, r = np.array([1, 2, 3, 4], np.float32), np.array([2, 1, 0, 0], np.float32)
    assert jaxlift.check(fun, x, r).complete
    report = jaxlift.check(fun, x, r, rule=jaxlift.OriginalMaxPooling())
    worst = max(report.lines, key=lambda line: abs(line.residual))
    assert not report.complete
    assert worst.operation == "reduce_window_max"


def model(x):
    return (jnp.float32(1e6) * (x[:, 0] - x[:, 1]) + x[:, 2])[:, None]


def test_cancellation():
    x, r = np.array([[3, 3, 1], [1, 0, 0]], np.float32), np.zeros(3, np.float32)
    with pytest.warns(UserWarning, match=r"contributions cancel: .* 6e\+06 times .*float64"):
        scores, delta, cancellation, *_ = jaxlift.attribute(model, target=0, full=True)(x, reference=r)
    assert scores.shape == x.shape
    assert delta.shape == cancellation.shape == (2,)
    np.testing.assert_allclose(cancellation, [6e6 + 1, 1], rtol=1e-6)
    compiled = jax.jit(jaxlift.attribute(model, target=0, full=True))(x, reference=r)
    np.testing.assert_allclose(compiled.cancellation, cancellation, rtol=1e-6)
    with pytest.warns(UserWarning, match="contributions cancel"):
        report = jaxlift.check(lambda x: model(x[None])[0, 0], x[0], r)
    assert report.cancellation == pytest.approx(6e6 + 1, rel=1e-6)


def test_a_batched_model_whose_examples_depend_on_each_other():
    def centred(x):
        return jnp.tanh(x - x.mean(0, keepdims=True)).sum(1)

    x, r = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((2, 3), np.float32)
    assert jaxlift.check(centred, x, r).complete
    with pytest.raises(ValueError, match=r"depend on the other examples.*\.eval\(\)"):
        jaxlift.check(centred, x, r, batched=True)
    assert jaxlift.check(lambda x: jnp.tanh(x).sum(1), x, r, batched=True).complete


def test_an_attribution_is_no_function_to_check():
    attr = jaxlift.attribute(lambda x: x.sum(1))
    with pytest.raises(TypeError, match="pass the model that it explains"):
        jaxlift.check(attr, jnp.ones((2, 3)), jnp.zeros((2, 3)))
