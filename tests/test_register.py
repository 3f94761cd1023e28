"""Rules of one's own, for primitives, for functions with a custom derivative, and for operations known by name."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.interpreters import mlir
from programs import input_and_reference

import jaxlift

X = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.0, -3.0]])
R = jnp.array([[1.0, 1.0, -1.0], [1.0, 2.0, 0.5]])


def primitive(name, fun, outputs=1):
    made = jax.extend.core.Primitive(name)
    made.multiple_results = outputs > 1
    made.def_impl(fun)
    mlir.register_lowering(made, mlir.lower_fun(fun, multiple_results=outputs > 1))
    made.def_abstract_eval(lambda *avals, **params: avals[0] if outputs == 1 else [avals[0]] * outputs)
    return made


def test_a_primitive():
    scale = primitive("scale_by", lambda x, factor: x * factor)
    _, by_implementation = jaxlift.vjp(lambda x: scale.bind(x, factor=3.0), X, R)
    np.testing.assert_array_equal(by_implementation(X), 3 * X)
    asked = []

    @jaxlift.register(scale)
    def _(cotangent, values, references, factor):
        asked.append(factor)
        assert values[0].shape == references[0].shape == X.shape
        return cotangent * factor

    (y, y_ref), pullback = jaxlift.vjp(lambda x: scale.bind(x, factor=3.0), X, R)
    np.testing.assert_array_equal((y, y_ref), (3 * X, 3 * R))
    np.testing.assert_array_equal(pullback(X), 3 * X)
    assert asked == [3.0]


def test_several_operands_and_outputs():
    pair = primitive("sum_and_product", lambda x, z: [x + z, x * z], outputs=2)

    @jaxlift.register(pair)
    def _(cotangents, values, references):
        (x, z), (r, s) = values, references
        of_sum, of_product = cotangents
        return of_sum + of_product * (z + s) / 2, of_sum + of_product * (x + r) / 2

    def fun(x):
        total, product = pair.bind(jnp.tanh(x[0]), x[1])
        return (total * product).sum()

    for rule in ("rescale", "revealcancel"):

        @jax.jit
        def explained(x, r, rule=rule):
            (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
            return pullback(jnp.float32(1)) * (x - r), y - y_ref

        scores, change = explained(X, R)
        assert np.sum(scores) == pytest.approx(float(change), rel=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_a_function_with_a_custom_derivative(nested):
    """As a kernel would be: its body can't be looked into."""

    @jax.custom_vjp
    def kernel(x):
        return jax.pure_callback(np.square, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")

    kernel.defvjp(lambda x: (kernel(x), x), lambda x, ct: (2 * x * ct,))
    calls = []

    @jaxlift.register(kernel)
    def _(cotangent, values, references):
        calls.append(values[0].shape)
        return cotangent * (values[0] + references[0])

    fun = jax.jit(lambda x: kernel(x).sum(-1)) if nested else lambda x: kernel(x).sum(-1)
    scores = jaxlift.attribute(fun)(X, reference=jnp.zeros(3))
    np.testing.assert_allclose(scores, X**2)
    assert set(calls) == {(1, 3)}
    assert jaxlift.check(lambda x: kernel(x).sum(), X[0], R[0]).complete


def test_a_primitive_by_its_name():
    """Kernels are one primitive, whose object has no public name."""

    def kernel(x_ref, out_ref):
        out_ref[...] = -x_ref[...]

    def negated(x):
        return pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)

    with pytest.raises(jaxlift.MissingRuleError, match="pallas_call"):
        jaxlift.vjp(negated, X, R)
    jaxlift.register("pallas_call")(lambda cotangent, values, references, **params: -cotangent)
    np.testing.assert_array_equal(jaxlift.vjp(negated, X, R)[1](X), -X)
    jaxlift.unregister("pallas_call")
    with pytest.raises(jaxlift.MissingRuleError, match="pallas_call"):
        jaxlift.vjp(negated, X, R)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"no primitive is named 'tnah'. Did you mean 'tanh'\?.*eqn.primitive"):
        jaxlift.register("tnah")


def test_what_was_there_before_comes_back():
    expected = jaxlift.vjp(jnp.tan, X, R)[1](X)
    for factor in (2.0, 3.0):
        jaxlift.register(jax.lax.tan_p)(lambda cotangent, values, references, f=factor, **params: f * cotangent)
        np.testing.assert_array_equal(jaxlift.vjp(jnp.tan, X, R)[1](X), factor * X)
    jaxlift.unregister(jax.lax.tan_p)
    np.testing.assert_array_equal(jaxlift.vjp(jnp.tan, X, R)[1](X), expected)
    with pytest.raises(KeyError, match="nothing is registered"):
        jaxlift.unregister(jax.lax.tan_p)


def test_a_rule_may_ask_which_rule_is_in_force():
    scale = primitive("scale_by_rule", lambda x: x * 1)
    seen = []

    @jaxlift.register(scale)
    def _(cotangent, values, references, *, rule):
        seen.append(rule)
        return cotangent

    for rule in (jaxlift.Rescale(), jaxlift.RevealCancel(), jaxlift.GuidedBackprop()):
        jaxlift.vjp(scale.bind, X, R, rule=rule)[1](X)
        assert seen.pop() == rule


def test_a_rule_that_breaks_the_sum_is_found():
    half = primitive("halved", lambda x: x / 2)
    jaxlift.register(half)(lambda cotangent, values, references: cotangent)
    report = jaxlift.check(lambda x: jnp.tanh(half.bind(x)).sum(), X, R)
    assert not report.complete
    worst = max(report.lines, key=lambda line: abs(line.residual))
    assert worst.operation == "halved"
    assert "test_register.py" in worst.where
    assert "halved" in str(report).splitlines()[2]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda ct: (ct, ct), r"a cotangent of each operand: expected 1, got 2"),
        (lambda ct: ct.sum(), r"cotangents of the operands' shapes: expected \(2, 3\), got \(\)"),
    ],
)
def test_what_a_rule_returns_is_checked(found, message):
    wrong = primitive("wrong", lambda x: x)
    jaxlift.register(wrong)(lambda cotangent, values, references: found(cotangent))
    with pytest.raises(ValueError, match=message):
        jaxlift.vjp(wrong.bind, X, R)[1](X)


def test_only_operations_have_rules():
    with pytest.raises(TypeError, match=r"a primitive, its name, or a function decorated with jax\.custom_vjp"):
        jaxlift.register(3)


@pytest.mark.usefixtures("x64")
def test_a_rule_replaces_another():
    """The product's midpoints, taken from one side only: another share, the same sum."""
    x, r = input_and_reference(jnp.float64)

    @jax.custom_jvp
    def product(x, z):
        return x * z

    product.defjvp(lambda primals, tangents: (product(*primals), tangents[0] * primals[1] + tangents[1] * primals[0]))
    jaxlift.register(product)(lambda ct, values, references: (ct * values[1], ct * references[0]))
    m = jaxlift.vjp(lambda x: product(x[:3], x[3:]).sum(), x, r)[1](1.0)
    np.testing.assert_allclose(m, np.concatenate([x[3:], r[:3]]))
