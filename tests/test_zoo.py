"""Every program is complete, or refused by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import input_and_reference
from test_sum import explain, missing
from zoo import COMPLETE, REFUSED, SINGLE_PRECISION

import jaxlift

SLOW = ("expm", "determinant", "slogdet")  # these take several seconds; their factorisations are in others too


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", ["rescale", pytest.param("revealcancel", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*COMPLETE, *SINGLE_PRECISION)],
)
@pytest.mark.sample(16)
def test_complete(name, rule):
    fun = (COMPLETE | SINGLE_PRECISION)[name]
    for seed in (0, 7):
        x, r = input_and_reference(jnp.float64, seed)
        values, multipliers, plain = explain(fun, x, r, rule)
        assert np.isfinite(multipliers).all()
        error, scale = missing(values, multipliers, x, r)
        assert error <= (1e-12 if name in COMPLETE else 1e-6) * scale
        np.testing.assert_allclose(values, plain, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    x, r = input_and_reference(jnp.float64)
    with pytest.raises(jaxlift.MissingRuleError, match=rf"`{re.escape(name)}.*zoo\.py:\d+.*jaxlift\.register"):
        jax.make_jaxpr(lambda x: jaxlift.vjp(REFUSED[name], x, r)[0])(x)
