"""All of JAX composes with attributions: each transformation, against the same thing done plainly."""

import functools
import gc
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from programs import PROGRAMS, input_and_reference

import jaxlift

RULES = ["rescale", "revealcancel"]
RESCALE_FIRST = ["rescale", pytest.param("revealcancel", marks=pytest.mark.slow)]
RNG = np.random.default_rng(4)
X, R = RNG.normal(size=(8, 12, 3)), RNG.normal(size=(5, 12, 3))
PARAMS = {
    "k": RNG.normal(size=(3, 3, 6)),
    "b": RNG.normal(size=6),
    "w": RNG.normal(size=(36, 4)),
    "v": RNG.normal(size=4),
}

pytestmark = pytest.mark.usefixtures("x64")


def model(params, x):
    """Convolution, SiLU, max-pooling, dense, ReLU."""
    h = lax.conv_general_dilated(x, params["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    h = jax.nn.silu(h + params["b"][None, None])
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID")
    return jax.nn.relu(h.reshape(h.shape[0], -1) @ params["w"] + 0.1) @ params["v"]


def attr(rule, **options):
    """`(params, x, r) -> scores`."""
    scores = jaxlift.attribute(model, argnums=1, rule=rule, **options)
    return lambda params, x, r: scores(params, x, reference=r)


@functools.cache
def compiled(rule):
    return jax.jit(attr(rule))


@functools.cache
def plainly(rule):
    """The scores that all transformations are compared with."""
    return compiled(rule)(PARAMS, X, R)


def close(actual, expected, rtol=1e-10, atol=1e-12):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_jit(rule):
    close(attr(rule)(PARAMS, X, R), plainly(rule))


def test_jit_of_a_small_model():
    """Each operation compiled by itself takes as long as the whole of a larger model."""
    scores = jaxlift.attribute(lambda x: jnp.tanh(x).sum(1))
    close(scores(X[:, 0], reference=R[0, 0]), jax.jit(scores)(X[:, 0], reference=R[0, 0]))


@pytest.mark.parametrize("rule", RESCALE_FIRST)
def test_vmap(rule):
    """Over parameters, as for an ensemble, and over a further axis of the input."""
    members = [PARAMS, jax.tree.map(lambda p: 0.5 * p, PARAMS), jax.tree.map(lambda p: -p, PARAMS)]
    ensemble = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    batched = jax.jit(jax.vmap(attr(rule), (0, None, None)))(ensemble, X, R)
    single = compiled(rule)
    close(batched, np.stack([single(member, X, R) for member in members]))
    nested = jax.jit(jax.vmap(attr(rule), (None, 0, None)))(PARAMS, X.reshape(2, 4, 12, 3), R)
    close(nested.reshape(X.shape), plainly(rule))


@pytest.mark.parametrize("rule", RULES)
def test_scan_over_batches(rule):
    mapped = jax.jit(lambda x: lax.map(lambda x: attr(rule)(PARAMS, x, R), x))
    close(mapped(X.reshape(2, 4, 12, 3)).reshape(X.shape), plainly(rule))


def finite_difference(loss, value, direction, step=1e-5):
    ends = (loss(jax.tree.map(lambda v, d: v + sign * step * d, value, direction)) for sign in (1, -1))  # noqa: B023
    up, down = ends
    return (up - down) / (2 * step)


@pytest.mark.parametrize("rule", RESCALE_FIRST)
def test_grad_of_a_loss_on_attributions(rule):
    """With respect to inputs, references and parameters: training with attribution priors."""
    rng = np.random.default_rng(6)

    @jax.jit
    @jax.value_and_grad
    def loss(arguments):
        params, x, r = arguments
        scores = attr(rule)(params, x, r)
        return (jnp.abs(scores) ** 1.5).sum()

    arguments = (PARAMS, X[:3], R[:2])
    _, gradient = loss(arguments)
    for i in range(3):
        direction = list(jax.tree.map(np.zeros_like, arguments))
        direction[i] = jax.tree.map(lambda p: rng.normal(size=p.shape), arguments[i])
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, tuple(direction))))
        close(along, finite_difference(lambda at: loss(at)[0], arguments, tuple(direction)), rtol=1e-5)


@pytest.mark.parametrize("rule", RESCALE_FIRST)
def test_checkpoint(rule):
    """Around the model, and around the attribution in a loss."""
    of_checkpoint = jaxlift.attribute(jax.checkpoint(model), argnums=1, rule=rule)
    close(jax.jit(lambda x, r: of_checkpoint(PARAMS, x, reference=r))(X, R), plainly(rule))

    def gradient(scores):
        return jax.jit(jax.grad(lambda params: (scores(params, X[:2], R[:3]) ** 2).sum()))(PARAMS)

    close(gradient(jax.checkpoint(attr(rule))), gradient(attr(rule)), rtol=1e-8)


def collectives(fun, *args):
    """The communication between devices in a compiled program."""
    text = fun.lower(*args).compile().as_text()
    return re.findall(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-[a-z]+)[a-z-]*\(", text)


@pytest.mark.parametrize("rule", RULES)
def test_sharding_over_eight_devices(rule):
    mesh = jax.make_mesh((8,), ("batch",))
    scores = jax.jit(attr(rule))
    # Without a mesh in the context JAX 0.12 fails on `jax.vmap` of a ReLU's derivative too.
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("batch")))
        sharded = scores(PARAMS, x, R)
        assert collectives(scores, PARAMS, x, R) == []
    assert sharded.sharding.spec[0] == "batch"
    assert len(sharded.sharding.device_set) == 8
    close(sharded, plainly(rule))


# JAX cannot merge two sharded axes for a convolution while shardings are part of types (AxisType.Explicit).
BOTH_AXES = {"axis_names": ("batch", "reference"), "axis_types": (AxisType.Auto, AxisType.Auto)}


def test_sharding_over_references():
    mesh = jax.make_mesh((2, 4), **BOTH_AXES)
    scores = jax.jit(attr("rescale", average=False))
    references = RNG.normal(size=(4, 12, 3))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("batch")))
    r = jax.device_put(references, NamedSharding(mesh, PartitionSpec("reference")))
    close(scores(PARAMS, x, r), scores(PARAMS, X, references))


def test_one_reduction_over_references():
    """Each device its own pairs. Left to itself, XLA gathers where a convolution merges two sharded axes into one."""
    mesh = jax.make_mesh((2, 4), **BOTH_AXES)
    x, r = PartitionSpec("batch"), PartitionSpec("reference")
    of_block = attr("rescale")
    scores = jax.jit(
        jax.shard_map(
            lambda params, x, r: lax.pmean(of_block(params, x, r), "reference"),
            mesh=mesh,
            in_specs=(PartitionSpec(), x, r),
            out_specs=x,
            check_vma=False,  # the model meets inputs that vary over one axis, and references that vary over the other
        )
    )
    close(scores(PARAMS, X, R[:4]), compiled("rescale")(PARAMS, X, R[:4]))
    assert collectives(scores, PARAMS, X, R[:4]) == ["all-reduce"]


IN_EACH_PROCESS = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
process, coordinator, out = int(sys.argv[1]), *sys.argv[2:]
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(coordinator, 2, process)
from test_transformations import BOTH_AXES, PARAMS, R, X, attr

# Half of the examples here and half there; then half of the references.
for name, shape, over in (("examples", (8, 1), "batch"), ("references", (4, 2), "reference")):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape[::-1]).T, **BOTH_AXES)
    x, r = (
        jax.make_array_from_callback(side.shape, NamedSharding(mesh, PartitionSpec(spec)), lambda i: side[i])
        for side, spec in ((X, "batch"), (R[:4], over if over == "reference" else None))
    )
    scores = jax.jit(attr("revealcancel"))(PARAMS, x, r)
    for shard in scores.addressable_shards:
        np.save(f"{out}/{name}-{process}-{shard.index[0].start or 0}.npy", shard.data)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IN_EACH_PROCESS, str(i), coordinator, tmp_path], cwd=Path(__file__).parent
        )
        for i in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    expected = np.asarray(jax.jit(attr("revealcancel"))(PARAMS, X, R[:4]))
    for name, count in (("examples", 8), ("references", 8)):
        files = list(tmp_path.glob(f"{name}-*"))
        assert len(files) == count
        for file in files:
            start, part = int(file.stem.split("-")[-1]), np.load(file)
            close(part, expected[start : start + len(part)])


@pytest.mark.parametrize("rule", RULES)
def test_pullback_under_vmap_is_linear(rule):
    x, r = input_and_reference(jnp.float64)
    weights = np.array([1.0, -2.0, 0.5])

    @jax.jit
    def pulled(x, r):
        _, pullback = jaxlift.vjp(lambda x: jnp.tanh(x[:3] * x[3:]), x, r, rule=rule)
        return pullback(weights), jax.vmap(pullback)(np.eye(3))

    together, each = pulled(x, r)
    close(together, weights @ each)


@pytest.mark.parametrize("rule", RULES)
def test_export_and_reload(rule):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (PARAMS, X, R))
    exported = jax.export.export(jax.jit(attr(rule)))(*shapes)
    reloaded = jax.export.deserialize(exported.serialize())
    close(reloaded.call(PARAMS, X, R), plainly(rule))


def test_export_for_any_number_of_examples():
    n, r = jax.export.symbolic_shape("n, r")
    shapes = (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), PARAMS),
        jax.ShapeDtypeStruct((n, *X.shape[1:]), X.dtype),
        jax.ShapeDtypeStruct((r, *R.shape[1:]), R.dtype),
    )
    exported = jax.export.export(jax.jit(attr("rescale")))(*shapes)
    close(exported.call(PARAMS, X, R), plainly("rescale"))


def test_ahead_of_time_and_donation():
    program = jax.jit(attr("rescale"), donate_argnums=1).lower(PARAMS, X, R).compile()
    x = jnp.array(X)
    close(program(PARAMS, x, R), plainly("rescale"))
    assert x.is_deleted()


def test_forward_values_are_untouched_by_the_rule():
    x, r = input_and_reference(jnp.float64)
    for program in PROGRAMS[:5]:
        y, y_ref = jax.jit(jaxlift.lift(program.fun, rule="revealcancel"))(x, r)
        plain = jax.jit(program.fun)
        close((y, y_ref), (plain(x), plain(r)), rtol=1e-14)


@pytest.mark.slow
def test_strict_settings():
    """No implicit promotion of dtypes (of ranks there is none in any test), no leaked tracers, no NaN on the way."""
    params, x, r = jax.tree.map(lambda a: a.astype(np.float32), (PARAMS, X[:2], R[:3]))

    def strict(params, x):
        h = lax.conv_general_dilated(x, params["k"], (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        h = jax.nn.silu(h + params["b"][None, None])
        return jax.checkpoint(lambda h, w: jnp.max(jnp.tanh(h @ w), 1))(h.reshape(x.shape[0], -1), params["w"])

    # RevealCancel runs all that Rescale does. To look for leaks, JAX traces everything again at each use.
    attr = jaxlift.attribute(strict, argnums=1, rule="revealcancel")
    gc.freeze()  # looking for leaks, JAX collects garbage at each step, among all that other tests have left
    with jax.numpy_dtype_promotion("strict"), jax.checking_leaks():
        program = jax.jit(lambda p, x, r: attr(p, x, reference=r)).lower(params, x, r).compile()
    gc.unfreeze()
    assert np.isfinite(program(params, x, r)).all()


def test_threads_and_repetition_leave_no_state():
    scores = compiled("revealcancel")
    first = scores(PARAMS, X, R)
    scores(jax.tree.map(lambda p: -p, PARAMS), X, R)
    np.testing.assert_array_equal(scores(PARAMS, X, R), first)
