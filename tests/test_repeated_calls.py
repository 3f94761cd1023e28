"""Layers that repeat, jitted or not, are lifted once, and explained as if they stood in each place."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import jaxlift
from jaxlift._core import repeats

RNG = np.random.default_rng(5)
CALLS = 3
W = RNG.normal(size=(CALLS, 4, 4))
X, REFERENCE = RNG.normal(size=(2, 4))


@jax.custom_jvp
def own_derivative(h):
    return jnp.maximum(h, 0)


own_derivative.defjvp(lambda primals, tangents: (own_derivative(*primals), tangents[0]))


def residual(w, h):
    return h + jnp.tanh(h @ w)


def ends_in_an_activation(w, h):
    """The function that begins here goes on in the next call."""
    return jax.nn.relu((2 * jnp.sin(h) - 0.1) @ w) * 3


def returns_its_operand(w, h):
    """So that `h * h` is a function of one value."""
    return h, jnp.tanh(h @ w)


def returns_exponentials(w, h):
    """The softmax is outside."""
    e = jnp.exp(h @ w)
    return e, e.sum()


def takes_exponentials(w, h, e, s):
    """The softmax is inside."""
    return (e / s) @ w + h


def returns_truth(w, h):
    return h @ w, (h @ w) > 0.1


def chain(call):
    def model(ws, h):
        for w in ws:
            h = call(w, h)
        return h.sum()

    return model


def products(call):
    def model(ws, h):
        for w in ws:
            same, t = call(w, h)
            h = jnp.sin(same * h) + t
        return h.sum()

    return model


def softmax_after(call):
    def model(ws, h):
        for w in ws:
            e, s = call(w, h)
            h = h + e / s
        return h @ np.arange(4.0)

    return model


def softmax_before(call):
    def model(ws, h):
        for w in ws:
            e = jnp.exp(h)
            h = call(w, h, e, e.sum())
        return h @ np.arange(4.0)

    return model


def gated(call):
    def model(ws, h):
        for w in ws:
            value, is_open = call(w, h)
            h = jnp.where(is_open, value, 0.1 * h)
        return h.sum()

    return model


def in_scopes(call):
    def model(ws, h):
        for i, w in enumerate(ws):
            with jax.named_scope(f"layer_{i % 2}"):
                h = call(w, h)
        return h.sum()

    return model


def in_a_loop(call):
    def model(ws, h):
        def step(h, w):
            return call(w, call(w, h)), None

        return jax.lax.scan(step, h, ws)[0].sum()

    return model


def from_afar(call):
    """Each block but the first takes what came before the last one, too."""

    def model(ws, h):
        before = h
        for w in ws:
            h, before = call(w, h) + 0.5 * before, h
        return h.sum()

    return model


def unlike(call):
    """Blocks of equal steps that take their operands from elsewhere: the second begins with the first one's input."""

    def model(ws, h):
        a = call(ws[0], h)
        b = call(ws[1], h)
        c = call(ws[2], b)
        d = call(ws[0], c)
        return (a + d).sum()

    return model


def with_numbers(call):
    def model(ws, h):
        for i, w in enumerate([*ws, *ws]):
            h = (1.0 if i < 3 else 2.0) * call(w, h)
        return h.sum()

    return model


def in_blocks(call):
    """Blocks of blocks."""

    def model(ws, h):
        for _ in range(3):
            for w in ws:
                h = call(w, h)
            h = jnp.sin(h)
        return h.sum()

    return model


def jitted(call):
    return jax.jit(chain(call))


MODELS = {
    "residual": (chain, residual),
    "ends in an activation": (chain, ends_in_an_activation),
    "returns its operand": (products, returns_its_operand),
    "returns exponentials": (softmax_after, returns_exponentials),
    "takes exponentials": (softmax_before, takes_exponentials),
    "returns truth": (gated, returns_truth),
    "in scopes": (in_scopes, residual),
    "in a loop": (in_a_loop, residual),
    "from afar": (from_afar, residual),
    "unlike": (unlike, residual),
    "with numbers": (with_numbers, residual),
    "in blocks": (in_blocks, ends_in_an_activation),
    "jitted": (jitted, residual),
}
RULES = {
    "rescale": "rescale",
    "revealcancel": "revealcancel",
    "by layer": "genomics_default",
    "by scope": jaxlift.PerLayer(scopes={"*layer_0*": "revealcancel"}),
}


# A choice of rules takes the same way through every model: two of them are enough for the quick tests.
PAIRS = [
    pytest.param(
        name, rule, marks=[pytest.mark.slow] * (rule.startswith("by ") and name not in ("residual", "in scopes"))
    )
    for name in MODELS
    for rule in RULES
]


@pytest.mark.usefixtures("x64")
@pytest.mark.filterwarnings("ignore:the scope .* is that of nothing in this program")
@pytest.mark.parametrize(("name", "rule"), PAIRS)
@pytest.mark.sample(10)
def test_as_if_it_stood_in_each_place(name, rule, monkeypatch):
    model, block = MODELS[name]
    results = []
    for call, fewest in ((block, 1000), (block, 3), (jax.jit(block), 3)):
        monkeypatch.setattr(repeats, "FEWEST", fewest)

        @jax.jit
        def explained(x, r, call=call):
            (y, y_ref), pullback = jaxlift.vjp(lambda x: model(call)(W, x), x, r, rule=RULES[rule])
            return y, y_ref, pullback(jnp.ones(()))

        y, y_ref, m = explained(X, REFERENCE)
        results.append((y, y_ref, m))
        np.testing.assert_allclose((m * (X - REFERENCE)).sum(), y - y_ref, rtol=1e-12)
    for inlined, repeated, called in zip(*results, strict=True):
        np.testing.assert_allclose(repeated, inlined, rtol=1e-12)
        np.testing.assert_allclose(called, inlined, rtol=1e-12)


def size(jaxpr, seen):
    """The equations of a jaxpr and of all that it calls, each counted once."""
    if id(jaxpr) in seen:
        return 0
    seen[id(jaxpr)] = jaxpr
    return len(jaxpr.eqns) + sum(size(inner, seen) for eqn in jaxpr.eqns for inner in jaxprs_in_params(eqn.params))


def batch(attr, ws):
    return lambda x, r: attr(ws, x, reference=r)


def batched(call):
    def model(ws, x):
        for w in ws:
            x = call(w, x)
        return x.sum(1)

    return model


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("block", [residual, ends_in_an_activation])
@pytest.mark.parametrize("called", [jax.jit, lambda block: block], ids=["jitted", "written out"])
def test_is_lifted_once(rule, block, called):
    """What a further call adds to the program is the call, forward and backward, and not the layer."""

    def equations(calls):
        attr = jaxlift.attribute(batched(called(block)), argnums=1, rule=rule)
        ws = jnp.ones((4, 4)), *[jnp.asarray(W[0], jnp.float32)] * calls
        return size(jax.make_jaxpr(batch(attr, ws))(jnp.ones((3, 4)), jnp.zeros((5, 4))).jaxpr, {})

    few, many, more = map(equations, (5, 10, 40))
    assert many - few <= 5 * 5
    assert more - many == 6 * (many - few)


def times_traced(rule, activation):
    """How often a rule is asked for the multipliers of an activation in layers that are no blocks."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Counted(rule):
        def pull(self, *args):
            seen.append(args)
            return super().pull(*args)

        def pull_parts(self, *args):
            seen.append(args)
            return super().pull_parts(*args)

    def model(h):
        for k in range(4):
            h = activation(jnp.roll(h, k) * W[k % CALLS, 0]) @ W[0] + k * h
        return h.sum()

    jax.eval_shape(lambda x, r: jaxlift.vjp(model, x, r, rule=Counted())[1](1.0), X, REFERENCE)
    return len(seen)


@pytest.mark.parametrize("rule", [jaxlift.Rescale, jaxlift.RevealCancel])
@pytest.mark.parametrize(
    ("activation", "traced"),
    [(jnp.tanh, 1), (jax.nn.relu, 1), (jax.nn.relu6, 1), (jax.nn.softplus, 1), (jax.nn.silu, 1), (own_derivative, 4)],
    ids=["tanh", "relu", "relu6", "softplus", "silu", "derivative of its own"],
)
def test_activations_that_come_again_are_traced_once(rule, activation, traced):
    """Of JAX's own those with a derivative of their own, too."""
    assert times_traced(rule, activation) == traced


def test_activations_are_traced_once_in_a_mesh_of_no_types():
    with jax.set_mesh(jax.make_mesh((2,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert times_traced(jaxlift.Rescale, jnp.tanh) == 1


@pytest.mark.parametrize("options", [{}, {"reference_batch_size": 2}, {"batch_size": 2}])
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_computes_no_more(rule, options, monkeypatch):
    """Not in batches either, where what examples or references need alone is computed before the loop."""

    def flops(call):
        attr = jaxlift.attribute(batched(call), argnums=1, rule=rule, **options)
        lowered = jax.jit(batch(attr, jnp.asarray(W, jnp.float32))).lower(jnp.ones((4, 4)), jnp.zeros((6, 4)))
        return lowered.compile().cost_analysis()["flops"]

    repeated, called = flops(residual), flops(jax.jit(residual))
    monkeypatch.setattr(repeats, "FEWEST", 1000)
    inlined = flops(residual)
    assert repeated <= 1.001 * inlined
    assert called <= 1.001 * inlined


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_derivatives_of_scores(rule):
    def loss(call):
        attr = jaxlift.attribute(batched(call), argnums=1, rule=rule)
        return jax.jit(jax.grad(lambda ws: (attr(ws, X[None], reference=REFERENCE) ** 2).sum()))(W)

    np.testing.assert_allclose(loss(jax.jit(residual)), loss(residual), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_check_sees_each_call():
    report = jaxlift.check(lambda x: chain(jax.jit(residual))(W, x), X, REFERENCE)
    assert report.error < 10
    assert sum(line.operation == "tanh" for line in report.lines) == CALLS


def test_what_repeats_is_found():
    """However often, whatever stands before and after, and where blocks begin."""

    def model(h):
        h = jnp.cos(h) * h
        for w in np.asarray(RNG.normal(size=(6, 4, 4)), np.float32):
            h = h + jnp.tanh((h - h.mean()) @ w)
        for w in np.asarray(RNG.normal(size=(4, 4, 4)), np.float32):
            h = jax.nn.relu(h @ w)
        for w in np.asarray(RNG.normal(size=(5, 3, 4, 4)), np.float32):
            h = jnp.sin((h @ w[0]) * (h @ w[1]) @ w[2])
        return h.sum()

    def side_by_side(h):
        return [jnp.tanh(h @ w) for w in np.asarray(RNG.normal(size=(5, 4, 4)), np.float32)]

    beside = jax.make_jaxpr(side_by_side)(jnp.ones(4)).jaxpr
    assert repeats.with_calls(beside, beside.eqns, beside.invars, by_scope=False) == beside.eqns
    jaxpr = jax.make_jaxpr(model)(jnp.ones(4)).jaxpr
    eqns = repeats.with_calls(jaxpr, jaxpr.eqns, jaxpr.invars, by_scope=False)
    calls = [
        eqn for eqn in eqns if eqn.primitive.name == "jit" and repeats.versions.is_any(eqn, repeats.versions.PRODUCTS)
    ]
    bodies = {id(eqn.params["jaxpr"]): eqn.params["jaxpr"] for eqn in calls}
    assert [sum(eqn.params["jaxpr"] is body for eqn in calls) for body in bodies.values()] == [6, 4, 5]
    assert [len(eqn.outvars) for eqn in calls] == [1] * 15  # what goes from block to block


def calls_in(model, *args, varying):
    """How often each block is called that a function's equations are made calls of."""
    jaxpr = jax.make_jaxpr(model)(*args).jaxpr
    eqns = repeats.with_calls(jaxpr, jaxpr.eqns, [jaxpr.invars[i] for i in varying], by_scope=False)
    written = [var for eqn in eqns for var in eqn.outvars]
    assert len(set(written)) == len(written)
    for i, eqn in enumerate(eqns):  # each reads what was made before
        made = {*jaxpr.invars, *jaxpr.constvars, *(var for each in eqns[:i] for var in each.outvars)}
        assert made.issuperset(repeats.versions.variables(eqn.invars))
    calls = [i for i, eqn in enumerate(eqns) if eqn.params.get("name") == "block"]
    bodies = [id(eqns[i].params["jaxpr"]) for i in calls]
    # What a block is given is made just before it, and not for all blocks before the first.
    assert all(later - call == calls[1] - calls[0] > 1 for call, later in pairwise(calls))
    return sorted(map(bodies.count, set(bodies)))


def stacked(h, w, b):
    """Parameters of all layers in one array, of which each takes its own."""
    scale = w.std()
    for i in range(CALLS + 1):
        h = h + jnp.tanh(h @ (w[i] / scale) + b[i])
    return h.sum()


def test_rows_of_stacked_parameters_are_no_difference():
    """As long as they don't vary: then rows are parts of what is explained."""
    args = jnp.ones(4), jnp.ones((CALLS + 1, 4, 4)), jnp.ones((CALLS + 1, 4))
    assert calls_in(stacked, *args, varying=[0]) == [CALLS + 1]
    assert calls_in(stacked, *args, varying=[0, 1, 2]) == []


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_rows_of_stacked_parameters(rule, monkeypatch):
    w, b = RNG.normal(size=(CALLS + 1, 4, 4)), RNG.normal(size=(CALLS + 1, 4))

    @jax.jit
    def scores(w, b):
        (y, y_ref), pull = jaxlift.vjp(lambda h: stacked(h, w, b), X, REFERENCE, rule=rule)
        return y - y_ref, pull(jnp.ones_like(y))

    difference, found = scores(w, b)
    np.testing.assert_allclose(found @ (X - REFERENCE), difference, rtol=1e-12)
    monkeypatch.setattr(repeats, "FEWEST", 1000)
    jax.clear_caches()
    np.testing.assert_allclose(found, scores(w, b)[1], rtol=1e-12)


@dataclasses.dataclass(frozen=True)
class MayReadScopes(jaxlift.RevealCancel):
    def at(self, place):
        return super().at(place)


@pytest.mark.parametrize(
    ("rule", "once"),
    [
        ("rescale", True),
        ("revealcancel", True),
        ("local_shapley", True),
        (jaxlift.OriginalMaxPooling("revealcancel"), True),
        (jaxlift.PerLayer(dense="revealcancel"), True),
        (jaxlift.PerLayer(scopes={"layer_1": "revealcancel"}), False),
        (MayReadScopes(), False),
        (jaxlift.PerLayer(dense=MayReadScopes()), False),
        (jaxlift.OriginalMaxPooling(jaxlift.PerLayer(where=[(lambda place: "1" in place.scope, "rescale")])), False),
    ],
)
def test_blocks_in_scopes_of_their_own_are_lifted_once(rule, once):
    """Unless the rule may ask for the scope, as Linen's modules open one for each layer."""

    def model(x):
        for i, w in enumerate(W):
            with jax.named_scope(f"layer_{i}"):
                x = x + jnp.tanh(x @ w)
        return x.sum(1)

    traced = jax.make_jaxpr(lambda x, r: jaxlift.attribute(model, rule=rule)(x, reference=r))(
        jnp.ones((2, 4)), jnp.zeros((3, 4))
    )
    assert ("name=block" in str(traced)) == once


def test_effects_of_parameters_stay_in_their_places(capfd):
    w = jnp.arange(4 * CALLS * 4.0).reshape(CALLS, 4, 4) / 40

    @jax.jit
    def scores(w):
        def model(h):
            for i in range(CALLS):
                h = jnp.tanh(h @ w[i])
                jax.debug.print("{}", w[i, 0, 0], ordered=True)
            return h.sum()

        return jaxlift.vjp(model, jnp.ones(4), jnp.zeros(4))[1](jnp.ones(()))

    scores(w).block_until_ready()
    jax.effects_barrier()
    assert list(map(float, capfd.readouterr().out.split())) == pytest.approx(list(map(float, w[:, 0, 0])))


def test_effects_stay_in_their_places(capfd):
    def model(h):
        for i in range(4):
            h = jnp.tanh(h @ jnp.eye(2))
            jax.debug.print("layer {i}", i=i, ordered=True)
        return h.sum()

    jaxlift.vjp(model, jnp.ones(2), jnp.zeros(2))
    jax.effects_barrier()
    assert [line for line in capfd.readouterr().out.split("\n") if line] == [f"layer {i}" for i in range(4)]
