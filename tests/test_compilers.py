"""What is written for one compiler is in no program for another."""

import re
from types import SimpleNamespace

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlift
from jaxlift._batching import arrangement, loops
from jaxlift._batching.partial_evaluation import traced

KERNEL = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)


def model(x):
    h = lax.conv_general_dilated(x, KERNEL, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    h = jax.nn.gelu(h, approximate=False)
    return jax.nn.relu(h.sum(1)).sum(1)


def lowered(rule, platform):
    attr = jaxlift.attribute(model, rule=rule, reference_batch_size=1)
    shapes = [jax.ShapeDtypeStruct((n, 9, 4), jnp.float32) for n in (2, 3)]
    traced = jax.jit(lambda x, r: attr(x, reference=r)).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def counts(program):
    """Divisions by a 1 that the compiler doesn't know, a number between 1 and 1; transpositions; barriers."""
    unknown_ones = len(re.findall(r"clamp %(\w+), %\w+, %\1\b", program))
    return unknown_ones, program.count("stablehlo.transpose"), program.count("optimization_barrier")


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_what_is_for_cpus_is_for_cpus_alone(rule):
    on_cpu, on_tpu, on_gpu = (counts(lowered(rule, platform)) for platform in ("cpu", "tpu", "cuda"))
    for ones, transpositions, _ in (on_tpu, on_gpu):
        assert (ones, transpositions) == (0, 0)
    assert on_tpu[2] == on_cpu[2] > 0
    assert on_gpu[2] == 0
    assert on_cpu[0] > 0
    assert on_cpu[1] > 0


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_cotangents_of_a_stream_are_kept_on_cpus_alone(rule):
    def stream(x):
        for _ in range(3):
            x = x + jnp.tanh(x @ jnp.ones((4, 4)))  # of which nothing else is computed once
        return x.sum(1)

    attr = jaxlift.attribute(stream, rule=rule)
    shapes = [jax.ShapeDtypeStruct((n, 4), jnp.float32) for n in (2, 3)]
    traced = jax.jit(lambda x, r: attr(x, reference=r)).trace(*shapes)
    on_cpu, *others = (counts(traced.lower(lowering_platforms=(p,)).as_text())[0] for p in ("cpu", "tpu", "cuda"))
    assert on_cpu > 0
    assert others == [0, 0]


def test_probes_are_summed_by_products_on_cpus_alone():
    attr = jaxlift.shapley_moments(lambda x: jax.nn.relu(jnp.tanh(x) * x[:, ::-1]).sum(1), probes=2)
    traced = jax.jit(lambda x, r: attr(x, reference=r)).trace(
        *(jax.ShapeDtypeStruct(s, np.float32) for s in [(2, 4), (4,)])
    )
    on_cpu, *others = (
        traced.lower(lowering_platforms=(p,)).as_text().count("dot_general") for p in ("cpu", "tpu", "cuda")
    )
    assert others == [0, 0]
    assert on_cpu > 0


def primitives_of(jaxpr):
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    inner = [primitives_of(each) for eqn in jaxpr.eqns for each in jax.extend.core.jaxprs_in_params(eqn.params)]
    return {eqn.primitive.name for eqn in jaxpr.eqns}.union(*inner)


def test_what_waits_is_no_choice_in_a_trace():
    """Choices are traced and batched branch by branch, for examples and again for references."""
    attr = jaxlift.attribute(lambda x: jnp.tanh(x @ KERNEL[0]).sum(1))
    x, r = jnp.ones((2, 4)), jnp.zeros((3, 4))
    found = primitives_of(jax.make_jaxpr(lambda x, r: attr(x, reference=r))(x, r))
    assert "wait_for_cotangent" in found
    assert "cond" not in found


def test_what_waits_is_explained_as_what_it_hands_on():
    def multipliers(x):
        return jaxlift.vjp(lambda x: jnp.tanh(x).sum(), x, jnp.zeros(3))[1](1.0).sum()

    x, r = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.1, 1.0, 0.2])
    (y, y_ref), pull = jaxlift.vjp(multipliers, x, r)
    np.testing.assert_allclose((pull(1.0) * (x - r)).sum(), y - y_ref, rtol=1e-5)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_nothing_waits_where_multipliers_are_no_more_than_residuals(rule):
    """One reference, or one example, or references of each example, on TPUs; CPUs have it as it was."""
    for n, r, pairing in (
        (2, (1,), "shared"),
        (1, (3,), "shared"),
        (2, (), None),
        (2, (2,), "paired"),
        (2, (2, 3), None),
    ):
        attr = jaxlift.attribute(model, rule=rule, pairing=pairing)
        shapes = [jax.ShapeDtypeStruct((*lengths, 9, 4), jnp.float32) for lengths in ((n,), r)]
        traced = jax.jit(lambda x, r, attr=attr: attr(x, reference=r)).trace(*shapes)
        on_cpu, *others = (counts(traced.lower(lowering_platforms=(p,)).as_text())[2] for p in ("cpu", "tpu", "cuda"))
        assert on_cpu > 0
        assert others == [0, 0]


def test_gpus_wait_for_nothing_inside_of_a_map():
    attr = jaxlift.attribute(model, pairing="shared")
    mesh = jax.make_mesh((2, 2), ("examples", "references"), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(
        lambda x, r: lax.pmean(attr(x, reference=r), "references"),
        mesh=mesh,
        in_specs=(P("examples"), P("references")),
        out_specs=P("examples"),
    )
    traced = jax.jit(mapped).trace(*(jax.ShapeDtypeStruct((n, 9, 4), jnp.float32) for n in (4, 6)))
    on_cpu, on_gpu = (counts(traced.lower(lowering_platforms=(p,)).as_text())[2] for p in ("cpu", "cuda"))
    assert on_cpu > 0
    assert on_gpu == 0


def convolutions(attr, n, r, platform):
    """The rows of the convolutions in a program, and how many loops it has."""
    shapes = [jax.ShapeDtypeStruct((k, 9, 4), jnp.float32) for k in (n, r)]
    traced = jax.jit(lambda x, r: attr(x, reference=r)).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    return {int(line.split(": (tensor<")[1].split("x")[0]) for line in lines}, text.count("stablehlo.while")


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_references_go_in_turn_on_tpus_alone(rule):
    """With 128 examples, which fill the tiles that convolutions are laid out in."""
    attr = jaxlift.attribute(model, rule=rule)
    for platform in ("cpu", "cuda"):
        assert convolutions(attr, 128, 3, platform) == ({3, 128, 384}, 0)
    assert convolutions(attr, 128, 3, "tpu") == ({1, 128}, 1)
    for few in ((127, 3), (128, 1)):
        assert convolutions(attr, *few, "tpu")[1] == 0
    for platform in ("cpu", "cuda"):
        assert convolutions(attr, 8, 3, platform) == ({3, 8, 24}, 0)
    assert convolutions(attr, 8, 3, "tpu") == ({24}, 0)  # pairs are rows from the beginning
    at_once = jaxlift.attribute(model, rule=rule, reference_batch_size=3)
    assert 384 in convolutions(at_once, 128, 3, "tpu")[0]


def test_without_convolutions_all_go_at_once():
    attr = jaxlift.attribute(lambda x: jnp.tanh(x @ jnp.ones((4, 3))).sum((1, 2)))
    assert convolutions(attr, 128, 3, "tpu") == (set(), 0)


def test_what_leaves_the_chip_goes_in_turn_too(monkeypatch):
    attr = jaxlift.attribute(model)
    assert convolutions(attr, 2, 3, "tpu")[1] == 0
    pairs = 2 * 3 * (9 * 4 + 4) * 4  # bytes of the arguments of GELU and ReLU
    for on_chip, count in ((100, 1), (pairs - 1, 1), (pairs, 0)):
        monkeypatch.setattr(arrangement, "ON_CHIP", on_chip)
        assert convolutions(attr, 2, 3, "tpu")[1] == count


def normed(x):
    """A layer norm, whose backward pass has sums."""
    x = x @ jnp.arange(12.0).reshape(4, 3) / 9
    x = x - x.mean(-1, keepdims=True)
    return jnp.tanh(x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-3)).sum((1, 2))


def loops_over_norms(x):
    return normed(lax.scan(lambda h, _: (jnp.tanh(h), None), x, None, 2)[0])


def shapes_for(attr, platform, **options):
    """The shapes of what is multiplied in a program for 5 examples and 8 references."""
    shapes = [jax.ShapeDtypeStruct((n, 9, 4), jnp.float32) for n in (5, 8)]
    traced = jax.jit(lambda x, r: attr(x, reference=r), **options).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"stablehlo.multiply .*tensor<((?:\d+x)+)f32>", text)
    return {tuple(map(int, lengths.split("x")[:-1])) for lengths in found}


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_backward_passes_are_of_rows_on_gpus_alone(rule):
    """Where there are sums in them. Forward passes are of examples and of references."""
    attr = jaxlift.attribute(normed, rule=rule)
    for platform, is_one_axis in (("cpu", False), ("tpu", False), ("cuda", True)):
        found = shapes_for(attr, platform)
        assert ((40, 1, 9, 3) in found, (5, 8, 1, 9, 3) in found) == (is_one_axis, not is_one_axis)
        assert {(5, 1, 9, 3), (8, 1, 9, 3)} < found


@pytest.mark.parametrize(
    "attr",
    [
        jaxlift.attribute(loops_over_norms),
        jaxlift.attribute(lambda x: jnp.tanh(x).sum((1, 2))),
        jaxlift.attribute(normed, reference_batch_size=8),
    ],
    ids=["loops", "no sums", "said"],
)
def test_other_backward_passes_are_of_two_axes_on_gpus(attr):
    assert not any(40 in shape for shape in shapes_for(attr, "cuda"))


def test_over_several_gpus_pairs_keep_both_axes():
    """Which may be spread like examples, and like references."""
    mesh = jax.make_mesh((2, 2), ("examples", "references"), axis_types=(AxisType.Auto,) * 2)
    split = [NamedSharding(mesh, P(axis)) for axis in (None, "references")]
    found = shapes_for(jaxlift.attribute(normed), "cuda", in_shardings=split)
    assert (5, 8, 1, 9, 3) in found
    assert not any(40 in shape for shape in found)


@pytest.fixture(params=["in turn", "as rows", "pulled as rows"])
def as_elsewhere(monkeypatch, request):
    """The library as it is on a TPU that takes every reference in turn, or every pair as a row; or on a GPU."""
    monkeypatch.setattr(
        arrangement, "lax", SimpleNamespace(platform_dependent=lambda default, **own: next(iter(own.values()))())
    )
    platform = "cuda" if request.param == "pulled as rows" else "tpu"
    monkeypatch.setattr(arrangement, "arrangements", lambda *args: {platform: request.param})


OPTIONS = [{}, {"average": False}, {"full": True}, {"target": "all"}, {"rule": "revealcancel", "output": "multipliers"}]


@pytest.mark.sample(4)
@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_traced_when_lowered_is_the_same(options, as_elsewhere):
    """With weights that are arguments of the program, as they are in most."""

    def weighted(w, x):
        return jnp.stack([model(x * w), model(x) ** 2], 1) if "target" in options else model(x * w)

    w, x, refs = (
        jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate([(1, 1, 4), (4, 9, 4), (3, 9, 4)])
    )
    attr = jaxlift.attribute(weighted, argnums=1, pairing="shared", **options)
    expected = attr.with_options(reference_batch_size=1)
    explained = jax.jit(lambda w, x, refs: attr(w, x, reference=refs))
    assert "traced_when_lowered" in str(explained.trace(w, x, refs).jaxpr)
    for call in (explained, explained.__wrapped__):
        jax.tree.map(close, call(w, x, refs), expected(w, x, reference=refs))


@pytest.mark.parametrize("average", [True, False])
def test_pairs_as_rows(average):
    """Of which each is a comparison of its own, or the mean over references is taken."""
    x, refs = (jax.random.normal(jax.random.key(k), (k, 2)) for k in (4, 3))
    compare = traced(lambda x, r: x * jnp.array([1.0, 2.0]) - r**2, x[0], refs[0])
    found = arrangement.as_rows(compare, x, refs, average=average, spread=())
    expected = np.asarray(x)[:, None] * np.array([1.0, 2.0]) - np.asarray(refs)[None] ** 2
    close(found, expected.mean(1) if average else expected)


def close(one, other):
    np.testing.assert_allclose(one, other, atol=2e-5 * max(1, float(np.abs(np.nan_to_num(other)).max())))


def transformed(attr):
    """What is asked of an attribution by one transformation or another."""
    summed = lambda x, refs: (attr(x, reference=refs) ** 2).sum()  # noqa: E731
    return {
        "grad": jax.grad(summed, (0, 1)),
        "grad of jit": jax.grad(jax.jit(summed), (0, 1)),
        "jit of grad of checkpoint": jax.jit(jax.grad(jax.checkpoint(summed), (0, 1))),
        "jvp": lambda x, refs: jax.jvp(lambda x: attr(x, reference=refs), (x,), (x,)),
        "vmap": jax.vmap(lambda x, refs: attr(x[None].repeat(2, 0), reference=refs), (0, None)),
        "vmap over references": jax.vmap(lambda x, ref: attr(x, reference=jnp.stack([ref, x[0]])), (None, 0)),
        "scan": lambda x, refs: lax.scan(lambda x, _: (attr(x, reference=refs), None), x, None, 2),
        "attribution of it": lambda x, refs: jaxlift.attribute(
            lambda each: jax.vmap(lambda one: attr(one[None].repeat(2, 0), reference=refs).sum())(each)
        )(x, reference=refs[0]),
    }


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", list(transformed(None)))
def test_what_is_traced_when_lowered_is_transformed(name, as_elsewhere):
    attr = jaxlift.attribute(model, pairing="shared")
    x, refs = (jax.random.normal(jax.random.key(k), (k, 9, 4)) for k in (4, 3))
    found = transformed(attr)[name](x, refs)
    jax.tree.map(close, found, transformed(attr.with_options(reference_batch_size=1))[name](x, refs))


def test_effects_and_shardings_are_traced_at_once(as_elsewhere):
    """Without what is traced later, whose types say nothing of them."""

    def printing(x):
        jax.debug.callback(lambda _: None, x)
        return model(x)

    x, refs = (jax.random.normal(jax.random.key(k), (k, 9, 4)) for k in (4, 3))
    traced = jax.jit(lambda x, r: jaxlift.attribute(printing)(x, reference=r)).trace(x, refs)
    assert "traced_when_lowered" not in str(traced.jaxpr)
    mesh = jax.make_mesh((2,), ("examples",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = jax.device_put(x, P("examples"))
        found = jax.jit(lambda x, r: jaxlift.attribute(model)(x, reference=r))(rows, refs)
    close(found, jaxlift.attribute(model, reference_batch_size=1)(x, reference=refs))


def test_the_arrangement_of_tpus_is_traced_for_tpus_alone(monkeypatch):
    """Tracing it is two thirds of tracing an attribution, in programs that never use it."""
    traced = []
    monkeypatch.setattr(loops, "sum_in_turn", lambda *args, own=loops.sum_in_turn: (traced.append(1), own(*args))[1])
    attr = jaxlift.attribute(model)
    convolutions(attr, 128, 3, "cpu")
    assert not traced
    convolutions(attr, 128, 3, "tpu")
    assert traced


@pytest.mark.parametrize("options", [{}, {"average": False}, {"full": True}, {"target": "all"}])
def test_either_arrangement_is_the_same(options):
    def several(x):
        return jnp.stack([model(x), model(x) ** 2], 1) if "target" in options else model(x)

    x, refs = (jax.random.normal(jax.random.key(k), (k, 9, 4)) for k in (4, 3))
    attr = jaxlift.attribute(several, **options)
    in_turn = jaxlift.attribute(several, reference_batch_size=1, **options)
    both = [each(x, reference=refs) for each in (attr, in_turn)]
    if "full" in options:
        both = [each._replace(delta=None) for each in both]  # which is rounding
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_nothing_cuts_the_fusions_of_gpus(rule):
    """Their compiler makes one kernel of a layer norm's sums, and of what is computed of them, unless something in
    between can't be in such a kernel, as `is_finite` can't.
    """

    def model(x):
        centred = x - x.mean(-1, keepdims=True)
        x = centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        x = jax.nn.softmax(jax.nn.gelu(x, approximate=False) @ jnp.ones((4, 4)))
        return jax.nn.elu(x).sum(1)

    attr = jaxlift.attribute(model, rule=rule)
    program = str(jax.make_jaxpr(lambda x, r: attr(x, reference=r))(jnp.ones((3, 4)), jnp.ones((2, 4))))
    assert "reduce_sum" in program
    assert "is_finite" not in program
