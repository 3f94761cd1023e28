"""Arrays spread over devices: functions with `jax.shard_map` inside, and shardings that are part of types.

These (explicit axes of a mesh) are the default in JAX 0.12. Elementwise operations then need equal shardings, and what
is made on the way must be spread as what it meets. The scores must be those of the same model on one device.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlift
from tests import spread

RNG = np.random.default_rng(0)
W, V = (RNG.normal(0, 0.5, shape).astype(np.float32) for shape in ((6, 8), (8, 3)))
X, R = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 6), (3, 6)))
PAIRED = RNG.normal(size=X.shape).astype(np.float32)
RULES = pytest.mark.parametrize("rule", ["rescale", "revealcancel"])


@pytest.fixture
def mesh():
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)


def is_sharded():
    return not jax.sharding.get_abstract_mesh().empty


def gathered(x, *spec):
    return jax.sharding.reshard(x, P(*spec)) if is_sharded() else x


def layer_norm(h):
    centred = h - h.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)


def attention(h):
    """Heads, which are spread over devices, of two tokens each."""
    spec = P(None, "model", None) if is_sharded() else None
    heads = h.reshape(-1, 4, 2, out_sharding=spec)[..., None]
    scores = jnp.einsum("nhqc,nhkc->nhqk", heads, heads)
    mixed = jnp.einsum("nhqk,nhkc->nhqc", jax.nn.softmax(scores, -1), heads)
    return mixed.reshape(h.shape, out_sharding=jax.typeof(h).sharding.spec if is_sharded() else None)


HIDDEN = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "a gate": lambda h: jnp.tanh(h) * jax.nn.sigmoid(h[:, ::-1]),
    "a maximum": lambda h: jnp.maximum(h, 0.5 * h[:, ::-1]),
    "layer norm": lambda h: jax.nn.relu(layer_norm(h)),
    "inverse root": lambda h: h * lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-3),
    "softmax": lambda h: jax.nn.softmax(h, -1),
    "attention": attention,
    "a loop": lambda h: lax.scan(lambda h, _: (jnp.tanh(1.5 * h), None), h, None, length=3)[0],
    "checkpoint": jax.checkpoint(lambda h: jax.nn.silu(h) * h),
    "fewer digits": lambda h: jax.nn.relu(h.astype(jnp.bfloat16)).astype(h.dtype),
    "gathered": lambda h: jnp.tanh(gathered(h[:, ::-1])),  # a pointwise function ends where its value moves
    "sorted": lambda h: jnp.sort(gathered(h), -1),
    "a maximum over devices": lambda h: h * h.max(-1, keepdims=True),
    "a choice": lambda h: jnp.where(h > 0, h, jnp.expm1(h)),
}


def model(hidden, weights, x, target=slice(1, 2)):
    """A layer whose units are spread over devices, and one that sums over these."""
    w, v = weights
    rows = jax.typeof(x).sharding.spec[0] if is_sharded() else None
    h = jnp.einsum("nd,dk->nk", gathered(x, rows), w, out_sharding=P(rows, "model") if is_sharded() else None)
    return jnp.einsum("nk,kc->nc", hidden(h), v, out_sharding=P(rows) if is_sharded() else None)[:, target]


def scores_on(mesh, attr, hidden, x, x_spec, reference, jit=jax.jit):
    """Scores of the model with spread weights; of `attr`, a function of a model, an input and a reference."""
    with jax.set_mesh(mesh):
        w, v = jax.device_put(W, NamedSharding(mesh, P(None, "model"))), jax.device_put(V, P("model", None))
        x = jax.device_put(x, NamedSharding(mesh, P(*x_spec)))
        scores = jit(lambda weights, x: attr(partial(model, hidden, weights), x, reference))((w, v), x)
        return jax.tree.map(np.asarray, scores)


def scores_on_one(attr, hidden, x, reference):
    return jax.jit(lambda x: attr(partial(model, hidden, (W, V)), x, reference))(x)


def close(scores, expected, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=atol), scores, expected)


@RULES
@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.sample(12)
def test_spread_weights(name, rule, mesh):
    def attr(fun, x, reference):
        return jaxlift.attribute(fun, rule=rule)(x, reference=reference)

    rows = () if name == "attention" else ("data",)
    scores = scores_on(mesh, attr, HIDDEN[name], X, rows, R)
    close(scores, scores_on_one(attr, HIDDEN[name], X, R), 1e-5 if name != "fewer digits" else 5e-3)


OPTIONS = {
    "references in turn": {"reference_batch_size": 2},
    "examples in turn": {"batch_size": 2},
    "all outputs": {"target": "all"},
    "each reference": {"average": False},
    "own references": {"pairing": "paired"},
    "full": {"full": True},
}


@pytest.mark.parametrize("spec", [("data", None), (None, "data"), ("data", "model")])
@pytest.mark.parametrize("name", OPTIONS)
def test_spread_inputs(name, spec, mesh):
    """Over examples, over features, and both: references come as they are."""

    def attr(fun, x, reference):
        fun = partial(fun, target=slice(None)) if name == "all outputs" else fun
        return jaxlift.attribute(fun, **OPTIONS[name])(x, reference=reference)

    reference = PAIRED if name == "own references" else R
    scores = scores_on(mesh, attr, jax.nn.gelu, X, spec, reference)
    close(scores, scores_on_one(attr, jax.nn.gelu, X, reference))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [("data", None), ("data", "model")])
@pytest.mark.parametrize("method", [jaxlift.integrated_gradients, jaxlift.occlusion, jaxlift.shapley])
def test_spread_inputs_of_other_methods(method, spec, mesh):
    def attr(fun, x, reference):
        return method(fun)(x, reference=reference)

    close(scores_on(mesh, attr, jnp.tanh, X, spec, R[0]), scores_on_one(attr, jnp.tanh, X, R[0]))


@pytest.mark.slow
@RULES
def test_spread_arguments_outside_of_jit(rule, mesh):
    """What is checked of known arrays takes spread ones too; other arguments' rows are spread as the input's are."""

    def attr(fun, x, reference):
        attr = jaxlift.attribute(lambda x, gains: fun(x * gains), rule=rule, batch_argnums=(1,))
        return attr(x, PAIRED, reference=reference)

    scores = scores_on(mesh, attr, jax.nn.relu, X, ("data",), R, jit=lambda fun: fun)
    close(scores, scores_on_one(attr, jax.nn.relu, X, R))


@RULES
def test_multipliers_are_spread_as_the_input_is(rule, mesh):
    """The reference comes as it is."""

    def fun(x):
        return jnp.tanh(x * W[None, :, 0]).sum()

    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P("data", "model")))
        multipliers = jax.jit(lambda x: jaxlift.vjp(fun, x, PAIRED, rule=rule)[1](1.0))(x)
    assert multipliers.sharding.spec == P("data", "model")
    close(np.asarray(multipliers), jaxlift.vjp(fun, X, PAIRED, rule=rule)[1](1.0))


def test_systems_of_equations_that_vary():
    """Their examples spread over devices; where this is part of types JAX has no `jnp.linalg.solve` of many systems."""

    def fun(x):
        matrices = x[:, :, None] * x[:, None, :] + 3 * jnp.eye(x.shape[1])[None]
        return jax.vmap(lambda a: jnp.linalg.solve(a, W[:, 0]).sum())(matrices)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    attr = jax.jit(lambda x: jaxlift.attribute(fun)(x, reference=R[0]))
    close(np.asarray(attr(x)), attr(X))


def over_model(body, out=(None, "model")):
    """A function whose units are spread over devices by `jax.shard_map`."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))
    return jax.shard_map(body, mesh=mesh, in_specs=(P(), P(None, "model")), out_specs=P(*out))


def halves(h):
    return h.reshape(len(h), 2, -1)


def other_half(h):
    return jnp.concatenate([h[:, h.shape[1] // 2 :], h[:, : h.shape[1] // 2]], 1)


# What devices do together, each with the same on one device.
COLLECTIVES = {
    "psum": (
        over_model(lambda x, w: jnp.tanh(lax.psum(jnp.tanh(x @ w), "model")), ()),
        lambda x, w: jnp.tanh(halves(jnp.tanh(x @ w)).sum(1)),
    ),
    "pmean": (
        over_model(lambda x, w: jnp.tanh(lax.pmean(jnp.tanh(x @ w), "model")), ()),
        lambda x, w: jnp.tanh(halves(jnp.tanh(x @ w)).mean(1)),
    ),
    "pmax": (
        over_model(lambda x, w: jnp.tanh(lax.pmax(x @ w, "model")), ()),
        lambda x, w: jnp.tanh(halves(x @ w).max(1)),
    ),
    "pmin": (
        over_model(lambda x, w: jnp.tanh(lax.pmin(x @ w, "model")), ()),
        lambda x, w: jnp.tanh(halves(x @ w).min(1)),
    ),
    "all_gather": (
        over_model(lambda x, w: (x @ w) * jnp.tanh(lax.all_gather(x @ w, "model", axis=1)).sum(1)),
        lambda x, w: (halves(x @ w) * jnp.tanh(halves(x @ w)).sum(1, keepdims=True)).reshape(len(x), -1),
    ),
    "psum_scatter": (
        over_model(lambda x, w: jnp.tanh(lax.psum_scatter(x @ w, "model", scatter_dimension=1, tiled=True))),
        lambda x, w: jnp.tanh(halves(x @ w).sum(1)),
    ),
    "ppermute": (
        over_model(lambda x, w: jnp.tanh(x @ w) * lax.ppermute(x @ w, "model", [(0, 1), (1, 0)])),
        lambda x, w: jnp.tanh(x @ w) * other_half(x @ w),
    ),
    "all_to_all": (
        over_model(lambda x, w: jnp.tanh(lax.all_to_all(x @ w, "model", 1, 1, tiled=True))),
        lambda x, w: jnp.tanh(halves(x @ w).reshape(len(x), 2, 2, -1).swapaxes(1, 2).reshape(len(x), -1)),
    ),
}


@RULES
@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives(name, rule):
    """Multipliers of a layer whose units are spread over devices are those of the layer on one."""

    def multipliers(fun, x, r):
        def weighted(x):
            y = fun(x, W)
            return (y * jnp.arange(1.0, 1 + y.shape[1])[None]).sum()

        return jaxlift.vjp(weighted, x, r, rule=rule)[1](1.0)

    close(*jax.jit(lambda x, r: [multipliers(fun, x, r) for fun in COLLECTIVES[name]])(X, PAIRED))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_map_over_the_batch(axis_type):
    """`jaxlift.vjp` takes a batch as a whole. `jaxlift.attribute` takes examples one by one, and its error says how to
    write that: the attribution is mapped.
    """
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
    spread = partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data"))

    def alone(x):
        return (jnp.tanh(x @ W) @ V).sum(1)

    expected = jax.jit(lambda x: jaxlift.attribute(alone)(x, reference=R))(X)
    attr = jaxlift.attribute(spread(alone))
    with jax.set_mesh(mesh):
        x, r = (jax.device_put(array, NamedSharding(mesh, P("data"))) for array in (X, PAIRED))
        with pytest.raises(ValueError, match=r"map the attribution.*in_specs=P\(axis\)"):
            attr(x, reference=R)
        mapped = jax.jit(spread(lambda x: jaxlift.attribute(alone)(x, reference=R)))(x)
        whole = jax.jit(lambda x, r: jaxlift.vjp(lambda x: spread(alone)(x).sum(), x, r)[1](1.0) * (x - r))(x, r)
    close(np.asarray(mapped), expected)
    paired = jax.jit(lambda x: jaxlift.attribute(alone, pairing="paired")(x, reference=PAIRED))(X)
    close(np.asarray(whole), paired)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_references_mapped_over_a_second_axis(rule):
    """Input and references vary over different axes of the mesh; one mean makes the average of all."""
    kernel = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)

    def model(x):
        h = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jnp.tanh(h).sum((1, 2))

    attr = jaxlift.attribute(model, rule=rule, pairing="shared")
    mesh = jax.make_mesh((2, 4), ("examples", "references"), axis_types=(AxisType.Auto,) * 2)
    x, refs = (jax.random.normal(jax.random.key(k), (k, 9, 4)) for k in (6, 8))
    mapped = jax.jit(
        jax.shard_map(
            lambda x, r: jax.lax.pmean(attr(x, reference=r), "references"),
            mesh=mesh,
            in_specs=(P("examples"), P("references")),
            out_specs=P("examples"),
        )
    )
    expected = attr(x, reference=refs)
    np.testing.assert_allclose(mapped(x, refs), expected, atol=2e-6 * float(jnp.abs(expected).max()))


@pytest.fixture
def spread_over(request):
    """A mesh of all devices, and how the kernels lie on it."""
    shape = spread.mesh_shape(request.param, 8)
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2), request.param


@pytest.mark.parametrize("spread_over", spread.LAYOUTS, indirect=True)
@pytest.mark.parametrize("references", [1, 3])
@RULES
@pytest.mark.sample(6)
def test_constraints_on_a_batch(rule, references, spread_over):
    """Examples are batches of one, and what a model says of its batch is meant of all of them: each device has its own
    examples, and kernels are gathered for their layer, if at all.
    """
    mesh, layout = spread_over
    w, n = spread.weights(), 24
    x, r = (np.random.default_rng(k).normal(size=(k, spread.WIDTH)).astype(np.float32) for k in (n, references))

    def scores(mesh, w, x):
        attr = jaxlift.attribute(partial(spread.network, mesh, w), rule=rule, pairing="shared")
        return attr(x, reference=r if references > 1 else r[0])

    placed = jax.device_put((w, x), spread.shardings(mesh, layout))
    compiled = jax.jit(partial(scores, mesh)).lower(*placed).compile()
    found = compiled(*placed)
    close(np.asarray(found), scores(None, w, x))
    assert found.sharding.spec[0] == "data"
    spread.check_exchanges(compiled.as_text(), layout, 8, n, w[0].size)


GRADIENT = partial(jaxlift.attribute, rule="gradient")


@pytest.mark.parametrize("spread_over", ["both"], indirect=True)
@pytest.mark.parametrize("method", [jaxlift.attribute, jaxlift.integrated_gradients, jaxlift.occlusion, GRADIENT])
@pytest.mark.slow
def test_constraints_on_a_batch_outside_of_jit(method, spread_over):
    """There JAX refuses to divide an axis of size 1."""
    mesh, layout = spread_over
    w, x = spread.weights(), np.random.default_rng(0).normal(size=(8, spread.WIDTH)).astype(np.float32)
    w_placed, x_placed = jax.device_put((w, x), spread.shardings(mesh, layout))
    reference = {} if method is GRADIENT else {"reference": x[0]}
    found = method(partial(spread.network, mesh, w_placed))(x_placed, **reference)
    close(np.asarray(found), method(partial(spread.network, None, w))(x, **reference))


def in_map_and_outside(attr, x):
    """Scores of an example on each of two devices, inside of `jax.shard_map`, and the same without."""
    mesh = jax.make_mesh((2,), ("n",), (AxisType.Auto,), devices=jax.local_devices()[:2])
    mapped = jax.shard_map(attr, mesh=mesh, in_specs=P("n"), out_specs=P("n"))
    return jax.jit(mapped)(x), jax.jit(attr)(x)


@pytest.mark.parametrize("activation", [jax.nn.relu, lambda u: jnp.maximum(u, 0)], ids=["relu", "maximum"])
@pytest.mark.parametrize("method", ["deconvnet", "local_shapley", "moments"])
def test_relu_is_one_inside_of_a_map(method, activation):
    """There JAX has even the 0 of a ReLU vary over devices, which makes an array of the literal."""

    def fun(x):
        return activation(x @ W).sum(1)

    attr = jaxlift.shapley_moments(fun) if method == "moments" else jaxlift.attribute(fun, rule=method)
    close(*in_map_and_outside(lambda x: attr(x, reference=R[0]), X[:2]))


SEVERAL = {
    "maximum": lambda x: x.max(1),
    "product": lambda x: x.prod(1),
    "choice by data": lambda x: jnp.where(x > x[:, ::-1], x, 0.1).sum(1),
    "quotient": lambda x: x[:, 0] / (2 + jnp.abs(x).sum(1)),
    "loop": lambda x: lax.scan(lambda c, row: (jnp.tanh(c + row), None), 0 * x[:, 0] + 1, x.T)[0],
}


@pytest.mark.parametrize("fun", SEVERAL.values(), ids=SEVERAL)
def test_moments_inside_of_a_map(fun):
    """What several values are computed by has numbers of its own, which must vary over devices too."""
    attr = jaxlift.shapley_moments(fun)
    close(*in_map_and_outside(lambda x: attr(x, reference=R[0]), X[:2]))
