"""Bad input is told what was expected, what came, and what to write instead."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift

X = jnp.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))
R = jnp.zeros(3)


def two_outputs(x):
    return jnp.tanh(x @ jnp.ones((3, 2)))


def one_output(x):
    return jnp.tanh(x).sum(1)


def attr(fun=one_output, **options):
    return jaxlift.attribute(fun, **options)


CASES = {
    "rule name": (
        lambda: attr(rule="recsale"),
        ValueError,
        r"'recsale'.*'rescale', 'revealcancel', 'genomics_default'",
    ),
    "rule type": (lambda: attr(rule=3), ValueError, r"rule=3 .*jaxlift\.Rule"),
    "output": (
        lambda: attr(output="scores"),
        ValueError,
        r"'scores' must be one of 'contributions', 'multipliers', 'hypothetical'",
    ),
    "pairing": (lambda: attr(pairing="both"), ValueError, r"'both' must be one of 'shared', 'paired'"),
    "target name": (lambda: attr(target="each"), ValueError, r"'each' must be None, an int"),
    "normalised function": (lambda: attr(target=lambda y: y[:, 0], normalize_target=True), ValueError, r"weighted sum"),
    "no reference": (
        lambda: attr()(X),
        TypeError,
        r"Rescale\(\) compares the input with a reference.*reference=\.\.\.",
    ),
    "no input": (lambda: attr()(reference=R), TypeError, r"argnums=0 .*counted from 0: got 0"),
    "argnums": (lambda: attr(argnums=-1)(X, reference=R), TypeError, r"argnums=-1 .*counted from 0: got 1"),
    "batch_argnums": (lambda: attr(batch_argnums=(1,))(X, reference=R), TypeError, r"batch_argnums=\(1,\).*got 1"),
    "reference shape": (
        lambda: attr()(X, reference=jnp.zeros(5)),
        ValueError,
        r"\(5,\) doesn't fit an input of shape \(4, 3\).*\(N, R",
    ),
    "reference structure": (
        lambda: attr()(X, reference=(R,)),
        ValueError,
        r"the input is one array, so the reference must be one too: got a tuple",
    ),
    "reference leaves": (
        lambda: attr(lambda x: one_output(x[0] + x[1]))((X, X), reference=(R, X[:2])),
        ValueError,
        r"read alike.*\(3,\), \(2, 3\)",
    ),
    "paired of one": (
        lambda: attr(pairing="paired")(X, reference=R),
        ValueError,
        r"pairing='paired' doesn't fit",
    ),
    "no references": (lambda: attr()(X, reference=X[:0]), ValueError, r"at least one, got an array of length 0"),
    "integers": (lambda: attr()(X.astype(int), reference=R), TypeError, r"dtype int32.*astype.*embeddings"),
    "integer leaf": (
        lambda: attr(argnums=(0, 1))(X, X.astype(int), reference=(R, R)),
        TypeError,
        r"input\[1\] has dtype int32",
    ),
    "empty batch": (lambda: attr()(X[:0], reference=R), ValueError, r"batch is empty"),
    "ragged batch": (
        lambda: attr(argnums=(0, 1))(X, X[:2], reference=(R, R)),
        ValueError,
        r"one length, but they begin with",
    ),
    "no target": (lambda: attr(two_outputs)(X, reference=R), ValueError, r"outputs of shape \(2,\).*target="),
    "target out of range": (
        lambda: attr(two_outputs, target=2)(X, reference=R),
        ValueError,
        r"target 2 .*expected 0 to 1",
    ),
    "targets out of range": (
        lambda: attr(two_outputs, target=[0, 1, 2, 0])(X, reference=R),
        ValueError,
        r"between 0 and 1, or -2 and -1 from the end, but they are between 0 and 2",
    ),
    "too few targets": (lambda: attr(two_outputs, target=[0, 1])(X, reference=R), ValueError, r"length 4.*\(2,\)"),
    "target of one output": (lambda: attr(target=0)(X, reference=R), ValueError, r"leave the target out"),
    "int of two axes": (
        lambda: attr(lambda x: two_outputs(x)[:, None], target=0)(X, reference=R),
        ValueError,
        r"shape \(1, 2\): give a tuple of 2 ints",
    ),
    "tuple of one axis": (lambda: attr(two_outputs, target=(0, 1))(X, reference=R), ValueError, r"2 indices.*\(2,\)"),
    "weights": (lambda: attr(two_outputs, target=jnp.ones(3))(X, reference=R), ValueError, r"\(3,\) don't fit.*\(2,\)"),
    "Boolean weights": (
        lambda: attr(two_outputs, target=jnp.ones(2, bool))(X, reference=R),
        TypeError,
        r"indices or weights",
    ),
    "several outputs": (
        lambda: attr(lambda x: (x, x))(X, reference=R),
        ValueError,
        r"returns a tuple of 2 arrays.*outputs\[0\]",
    ),
    "integer outputs": (lambda: attr(lambda x: x.argmax(1))(X, reference=R), TypeError, r"dtype int32"),
    "no batch": (lambda: attr(lambda x: x[0])(X, reference=R), ValueError, r"jax\.vmap\(model\)"),
    "rows of other arguments": (
        lambda: attr(lambda x, m: (x * m).sum(1))(X, jnp.ones((4, 3)), reference=R),
        ValueError,
        r"name it in batch_argnums",
    ),
    "lift: shape": (lambda: jaxlift.lift(one_output)(X, R), ValueError, r"expected \(4, 3\), got \(3,\).*broadcast_to"),
    "lift: leaf": (
        lambda: jaxlift.lift(lambda x: x["a"])({"a": X}, {"a": R}),
        ValueError,
        r"the reference\['a'\] must have the shape",
    ),
    "lift: integers": (lambda: jaxlift.lift(one_output)(jnp.arange(3), R), TypeError, r"dtype int32"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


class TestMissingRules:
    def test_names_primitive_and_line(self):
        def fun(x):
            return jnp.sum(jax.scipy.linalg.schur(x * jnp.ones((3, 3)))[0])

        with pytest.raises(
            jaxlift.MissingRuleError, match=r"`schur` has no rule.*test_errors\.py:\d+.*jaxlift\.register"
        ):
            jaxlift.vjp(fun, jnp.float32(1), jnp.float32(0))

    def test_names_the_users_line_inside_library_functions(self):
        with pytest.raises(jaxlift.MissingRuleError, match=r"test_errors\.py:\d+"):
            jaxlift.vjp(
                lambda x: jax.jit(jax.scipy.linalg.schur)(x * jnp.ones((3, 3)))[0].sum(), jnp.float32(1), jnp.float32(0)
            )

    def test_what_does_not_depend_on_the_input_needs_no_rule(self):
        def fun(x):
            return (x * jnp.linalg.eigvalsh(jnp.eye(3))).sum()

        assert jaxlift.vjp(fun, X[0], R)[1](jnp.float32(1)).shape == (3,)

    def test_plain_derivatives_with_a_warning(self):
        def fun(x):
            return lax.approx_max_k(x * jnp.arange(1, 4.0), 1)[0].sum() + jnp.tanh(x)

        with pytest.warns(UserWarning, match=r"`approx_top_k` has no rule.*plain derivative is used"):
            (_, pullback) = jaxlift.vjp(fun, jnp.float32(2), jnp.float32(1), missing_rule="derivative")
        assert pullback(jnp.float32(1)) == pytest.approx(3 + jnp.tanh(2.0) - jnp.tanh(1.0))


class TestPrimitivesOfOtherLibraries:
    @staticmethod
    def made(implementation):
        primitive = jax.extend.core.Primitive("of_another_library")
        primitive.def_impl(implementation)
        primitive.def_abstract_eval(lambda x, scale: x)
        return lambda x: primitive.bind(x, scale=2.0)

    def test_an_implementation_is_explained(self):
        operation = self.made(lambda x, scale: scale * jnp.sin(x))
        x, r = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
        for rule in ("rescale", "revealcancel"):
            (_, _), pullback = jaxlift.vjp(lambda x: operation(x).sum(), x, r, rule=rule)
            expected = 2 * (np.sin(x) - np.sin(r))
            np.testing.assert_allclose(pullback(jnp.ones(())) * (x - r), expected, rtol=1e-6)

    def test_one_that_is_not_of_jax_is_refused(self):
        operation = self.made(lambda x, scale: scale * np.sin(np.asarray(x)))
        message = r"(?s)`of_another_library`.*can't be traced.*test_errors\.py"
        with pytest.raises(jaxlift.MissingRuleError, match=message):
            jaxlift.vjp(lambda x: operation(x).sum(), X[0], R)

    def test_a_line_of_another_library_comes_with_the_users(self):
        loops = pytest.importorskip("equinox.internal")

        def model(x):
            final = loops.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x), kind="lax")
            return final[1].sum()

        with pytest.raises(jaxlift.MissingRuleError, match=r"from \S*test_errors\.py:\d+ \(\S*model\), in \S*equinox"):
            jaxlift.vjp(model, X[0], R)

    def test_bounded_loops_of_equinox_with_a_buffer(self):
        """As diffrax and optimistix run on: a primitive for each write into the buffer."""
        loops = pytest.importorskip("equinox.internal")

        def body(carry):
            i, y, buffer = carry
            y = jnp.tanh(1.3 * y)
            return i + 1, y, buffer.at[i].set(y.sum())

        def steps(y):
            start = (0, y, jnp.zeros(4))
            final = loops.while_loop(
                lambda carry: carry[0] < 4, body, start, max_steps=4, buffers=lambda carry: carry[2], kind="bounded"
            )
            return final[2].sum()

        def by_hand(y):
            total = 0.0
            for _ in range(4):
                y = jnp.tanh(1.3 * y)
                total += y.sum()
            return total

        def explained(fun):
            return jax.jit(jaxlift.attribute(jax.vmap(fun)))(X / 12, reference=R)

        np.testing.assert_allclose(explained(steps), explained(by_hand), rtol=1e-5, atol=1e-7)
