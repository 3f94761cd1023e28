"""Every primitive of JAX's public namespaces is classified: it has a rule, or a reason why it has none."""

import jax
import jax.extend
import pytest

from jaxlift._core import table

NAMES = sorted({name for home in (jax.lax, jax.extend.core.primitives) for name in dir(home) if name.endswith("_p")})


@pytest.mark.parametrize("name", NAMES)
def test_is_classified(name):
    primitives = {getattr(home, name) for home in (jax.lax, jax.extend.core.primitives) if hasattr(home, name)}
    assert all(table.evaluation_or_none(primitive) for primitive in primitives), (
        "add the primitive to a family in jaxlift/primitives, or to refused.py with the reason"
    )
