"""What attribution computes and keeps, counted by the compiler: FLOPs, temporary memory, passes of the model.

The floor, in forward passes of the model on one example: `N + R + N R` for Rescale, `N + R + 3 N R` for RevealCancel.
"""

import functools
import math
import re
from collections import Counter

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift
from jaxlift.primitives import reductions

N, R, LENGTH, FILTERS = 8, 20, 256, 64


def conv(h, kernel, dilation=1):
    return lax.conv_general_dilated(
        h, kernel, (1,), "SAME", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
    )


def dilated_network(depth=2):
    """A small BPNet: one wide convolution, some dilated ones with residuals, a mean and a dense layer."""
    rng = np.random.default_rng(0)
    params = {
        "first": (rng.normal(size=(21, 4, FILTERS)) / 9, rng.normal(size=(1, 1, FILTERS)) / 10),
        "rest": [
            (rng.normal(size=(3, FILTERS, FILTERS)) / 14, rng.normal(size=(1, 1, FILTERS)) / 10) for _ in range(depth)
        ],
        "dense": rng.normal(size=FILTERS) / 8,
    }

    def model(params, x):
        kernel, bias = params["first"]
        h = jax.nn.relu(conv(x, kernel) + bias)
        for i, (kernel, bias) in enumerate(params["rest"]):
            h = h + jax.nn.relu(conv(h, kernel, 2 ** (i + 1)) + bias)
        return h.mean(1) @ params["dense"]

    return model, jax.tree.map(np.float32, params)


EXACT_GELU = functools.partial(jax.nn.gelu, approximate=False)
LAYERS = 3  # convolutions of a network as deep as it comes


def batch(n):
    return jax.ShapeDtypeStruct((n, LENGTH, 4), jnp.float32)


def compiled(fun, *args):
    return jax.jit(fun).lower(*args).compile()


def rows_of_convolutions(attr, *batches):
    """How many rows each convolution of the program has."""
    _, params = dilated_network()
    text = jax.jit(lambda p, x, r: attr(p, x, reference=r)).lower(params, *batches).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    return [int(line.split(": (tensor<")[1].split("x")[0]) for line in lines]


@functools.cache
def costs():
    """FLOPs and temporary bytes of each program that is compared."""
    model, params = dilated_network(5)

    def gradient(params, x):
        return jax.grad(lambda x: model(params, x).sum())(x)

    def attribution(rule, params, x, r):
        return jaxlift.attribute(model, argnums=1, rule=rule)(params, x, reference=r)

    programs = {
        "forward N + R": compiled(model, params, batch(N + R)),
        "forward N R": compiled(model, params, batch(N * R)),
        "gradient N R": compiled(gradient, params, batch(N * R)),
        **{
            rule: compiled(functools.partial(attribution, rule), params, batch(N), batch(R))
            for rule in ("rescale", "revealcancel")
        },
    }
    flops = {name: program.cost_analysis()["flops"] for name, program in programs.items()}
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    return flops, memory


def test_flops_are_near_the_floor():
    flops, _ = costs()
    backward = flops["gradient N R"] - flops["forward N R"]
    assert flops["rescale"] <= 1.08 * (flops["forward N + R"] + backward)
    assert flops["revealcancel"] <= 1.30 * (flops["forward N + R"] + flops["forward N R"] + 2 * backward)


def test_memory():
    _, memory = costs()
    assert memory["rescale"] <= 0.7 * memory["gradient N R"]
    assert memory["revealcancel"] <= 2.5 * memory["gradient N R"]


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.gelu, jax.nn.relu])
def test_revealcancel_keeps_a_variation_for_each_layer(activation):
    """And nothing else of the size of the pairs: neither its points nor the multipliers there."""

    def memory(depth):
        def model(x):
            for _ in range(depth):
                x = activation(x @ (jnp.ones((64, 64)) / 64))
            return x.sum(1)

        attr = jaxlift.attribute(model, rule="revealcancel")
        program = compiled(lambda x, r: attr(x, reference=r), jnp.ones((N, 64)), jnp.zeros((R, 64)))
        return program.memory_analysis().temp_size_in_bytes

    of_pairs = N * R * 64 * 4
    assert memory(8) - memory(4) <= 4 * 1.5 * of_pairs


def of_layers(activation, rule, layers=3, width=16):
    """The compiled attribution of layers, each a product with ones and an activation."""

    def model(x):
        for _ in range(layers):
            x = activation(x @ jnp.ones((width, width)))
        return x.sum(1)

    attr = jaxlift.attribute(model, rule=rule)
    return compiled(lambda x, r: attr(x, reference=r), jnp.ones((N, width)), jnp.zeros((R, width)))


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.gelu])
def test_no_secant_evaluates_tanh_for_pairs(activation, rule):
    """Rescale does nowhere, RevealCancel at each of its two points. (That of GELU is of a third power, which is finite
    as a product is.)
    """
    shapes = re.findall(r"= f32\[([\d,]+)\]\S* tanh\(", of_layers(activation, rule).as_text())
    sizes = [math.prod(map(int, shape.split(","))) // 16 for shape in shapes]
    assert sizes.count(N) == sizes.count(R) >= 3
    if activation is jnp.tanh:  # whose secants are made of its values
        assert sizes.count(N) == 3
    assert sizes.count(N * R) == len(sizes) - 2 * sizes.count(N) == (0 if rule == "rescale" else 3 * 2)


@pytest.mark.usefixtures("optimized")
def test_no_polynomial_is_worked_out_for_pairs():
    """That of exact GELUs has 61 operations. Both rules need it of inputs and of references, where the network is
    evaluated, and keep what it gives; where XLA combines them for pairs, it is not there again. RevealCancel needs it
    of its two points besides.
    """

    def computations(rule):
        texts = of_layers(EXACT_GELU, rule, layers=2).as_text().split("\n\n")
        return {text: len(re.findall(r"%erfc\S* = .* (?:multiply|add)\(", text)) for text in texts}

    rescale, revealcancel = map(computations, ("rescale", "revealcancel"))
    of_pairs = [count for text, count in rescale.items() if f"f32[{N},{R}," in text]
    assert len(of_pairs) >= 2
    assert max(of_pairs) < 5
    assert [sum(count > 40 for count in each.values()) for each in (rescale, revealcancel)] == [2 * 2, 2 * (2 + 2)]
    assert max(*rescale.values(), *revealcancel.values()) < 61


def test_what_secants_need_of_an_end_is_worked_out_once():
    """RevealCancel has four ends, and two secants at each: the input, the reference, and each moved by one part."""

    def exponentials(rule):
        program = jax.make_jaxpr(
            lambda x, r: jaxlift.vjp(lambda x: EXACT_GELU(x @ jnp.ones((4, 4))), x, r, rule=rule)[1](x)
        )
        return str(program(*jnp.ones((2, 4)))).count("= exp ")

    assert (exponentials("rescale"), exponentials("revealcancel")) == (2, 4)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("activation", "most"),
    [(EXACT_GELU, 6.5), (jax.nn.silu, 5.5), (jax.nn.elu, 6.5)],
)
def test_secants_of_both_parts_are_read_and_not_made_anew(activation, most):
    """The cotangents of a value and of its variation are the sum and the difference of those of its parts. RevealCancel
    moves so many times what Rescale does.
    """
    programs = (of_layers(activation, rule, width=64) for rule in ("rescale", "revealcancel"))
    rescale, revealcancel = (program.cost_analysis()["bytes accessed"] for program in programs)
    assert revealcancel < most * rescale


@pytest.mark.parametrize(("rule", "count"), [("rescale", 1), ("revealcancel", 2)])
def test_the_parts_of_a_split_are_put_together_once(rule, count):
    """In the backward pass: for the value, and for its variation under RevealCancel. The gates of an LSTM are such."""

    def model(x):
        return sum(jnp.tanh(part).sum(1) for part in jnp.split(x @ jnp.ones((16, 16)), 4, -1))

    attr = jaxlift.attribute(model, rule=rule)
    program = jax.jit(lambda x, r: attr(x, reference=r)).lower(jnp.ones((N, 16)), jnp.zeros((R, 16)))
    assert len(re.findall(r"stablehlo\.(?:concatenate|pad)\b", program.as_text())) == count


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_the_model_is_evaluated_on_n_plus_r_examples(rule):
    """Counted in the program: convolutions on N, on R and on N R examples."""
    model, _ = dilated_network()
    rows = rows_of_convolutions(jaxlift.attribute(model, argnums=1, rule=rule), batch(N), batch(R))
    assert rows.count(N) == LAYERS
    assert rows.count(R) == LAYERS
    assert rows.count(N * R) == (1 if rule == "rescale" else 3) * LAYERS
    assert len(rows) == sum(rows.count(n) for n in (N, R, N * R))


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_loops_evaluate_n_plus_r_examples(rule):
    """A recurrent network: matrix products in the loops' bodies, on N, on R and on N R examples."""
    weights = jnp.ones((8, 8))

    def recurrent(x):
        def step(h, u):
            return jnp.tanh(h @ weights + u), None

        return lax.scan(step, jnp.zeros((len(x), 8)), x.swapaxes(0, 1))[0].sum(1)

    attr = jaxlift.attribute(recurrent, rule=rule)
    text = jax.jit(lambda x, r: attr(x, reference=r)).lower(jnp.ones((3, 4, 8)), jnp.zeros((5, 4, 8))).as_text()
    operands = [line.split(" : (tensor<")[1].split("x1x8x")[0] for line in text.splitlines() if "dot_general" in line]
    assert operands.count("3") == operands.count("5") == 1
    assert operands.count("3x5") == len(operands) - 2 == (1 if rule == "rescale" else 3)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_checkpoint_keeps_its_promise(rule):
    """Sixteen blocks of four layers: with checkpoints, what is kept is a value for each block."""
    weights = jnp.ones((16, 4, 32, 32)) / 64

    def block(h, own):
        y = h
        for i in range(4):
            y = jnp.tanh(y @ own[i])
        return h + y

    def memory(block):
        attr = jaxlift.attribute(
            lambda x: lax.scan(lambda h, own: (block(h, own), None), x, weights)[0].sum(1), rule=rule
        )
        program = compiled(lambda x, r: attr(x, reference=r), jnp.ones((256, 32)), jnp.zeros((8, 32)))
        return program.memory_analysis().temp_size_in_bytes

    assert memory(jax.checkpoint(block)) <= 0.6 * memory(block)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_batches_keep_n_plus_r_forward_passes(rule):
    """Loops over pairs only: what needs examples alone, or references alone, is outside of the loop over the others."""
    model, _ = dilated_network()
    passes = LAYERS if rule == "rescale" else 3 * LAYERS
    attr = jaxlift.attribute(model, argnums=1, rule=rule, reference_batch_size=5)
    rows = rows_of_convolutions(attr, batch(N), batch(R))
    assert (rows.count(N), rows.count(5), rows.count(5 * N)) == (LAYERS, LAYERS, passes)
    assert len(rows) == 2 * LAYERS + passes
    attr = jaxlift.attribute(model, argnums=1, rule=rule, batch_size=4)
    rows = rows_of_convolutions(attr, batch(N), batch(R))
    assert (rows.count(4), rows.count(R), rows.count(4 * R)) == (LAYERS, LAYERS, passes)
    assert len(rows) == 2 * LAYERS + passes


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.gelu, jnp.tanh, jax.nn.relu6])
def test_forward_passes_of_the_others_are_outside_of_the_loop(activation, rule):
    """Activations are traced once and called, with both sides, of which the value at the input needs one."""
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(3, a, b)).astype(np.float32) for a, b in ((4, 8), (8, 8), (8, 8))]

    def model(x):
        for kernel in kernels:
            x = activation(conv(x, kernel))
        return x.sum((1, 2))

    def in_loops(jaxpr, inside=False):
        for eqn in jaxpr.eqns:
            if inside and eqn.primitive.name == "conv_general_dilated":
                yield math.prod(eqn.invars[0].aval.shape) // math.prod(eqn.invars[0].aval.shape[-2:])
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from in_loops(inner, inside or eqn.primitive.name == "scan")

    for size, others in (("batch_size", R), ("reference_batch_size", N)):
        attr = jaxlift.attribute(model, rule=rule, **{size: 4})
        program = jax.make_jaxpr(lambda x, r, attr=attr: attr(x, reference=r))(batch(N), batch(R))
        rows = list(in_loops(program.jaxpr))
        assert set(rows) == {4, 4 * others}
        assert rows.count(4 * others) == (1 if rule == "rescale" else 3) * rows.count(4)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_batches_bound_memory(rule):
    """With ten references at a time, a hundred need hardly more than ten: their own share is the references."""
    model, params = dilated_network()

    def memory(count, **options):
        attr = jaxlift.attribute(model, argnums=1, rule=rule, **options)
        program = compiled(lambda p, x, r: attr(p, x, reference=r), params, batch(4), batch(count))
        return program.memory_analysis().temp_size_in_bytes

    assert memory(100, reference_batch_size=10) <= 1.2 * memory(10)


@pytest.mark.parametrize("shape", [(16384,), (128, 128, 1)])
def test_references_are_not_copied_before_their_batch(shape):
    """A hundred of 64 kB each: what they add to ten's need is less than half of them. (An axis of length 1 XLA lays
    out for a convolution otherwise than it comes.)
    """
    kernel = jnp.ones((4, 4, 1, 8)) / 16

    def model(x):
        if x.ndim == 4:
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(x).reshape(len(x), -1).sum(1)

    attr = jaxlift.attribute(model, reference_batch_size=10)

    def memory(r):
        program = compiled(lambda x, r: attr(x, reference=r), jnp.ones((1, *shape)), jnp.ones((r, *shape)))
        return program.memory_analysis().temp_size_in_bytes

    assert memory(100) - memory(10) < 50 * 16384 * 4


@pytest.mark.slow
def test_within_memory():
    model, params = dilated_network(5)
    attr = jaxlift.attribute(model, argnums=1)

    def memory(attr, n, r):
        return compiled(lambda p, x, r: attr(p, x, reference=r), params, batch(n), batch(r)).memory_analysis()

    for n, r, budget in ((N, R, 20e6), (N, R, 3e6), (40, 1, 20e6), (N, R, 1e9)):
        fitted = jaxlift.within_memory(attr, params, batch(n), reference=batch(r), memory=budget)
        found = memory(fitted, n, r).temp_size_in_bytes
        assert found <= budget
        if budget == 20e6:
            assert found >= budget / 2
        if budget == 1e9:
            assert fitted is attr


def test_one_reference_of_each_example_costs_one_pass_each():
    model, params = dilated_network()
    attr = jaxlift.attribute(model, argnums=1, pairing="paired")
    text = jax.jit(lambda p, x, r: attr(p, x, reference=r)).lower(params, batch(N), batch(N)).as_text()
    assert text.count("stablehlo.convolution") == 3 * LAYERS


def test_all_outputs_share_one_forward_pass():
    model, params = dilated_network(5)

    def several(params, x):
        y = model(params, x)
        return jnp.stack([y, 2 * y], 1)

    def convolutions(target):
        attr = jaxlift.attribute(several, argnums=1, target=target)
        program = jax.jit(lambda p, x, r: attr(p, x, reference=r)).lower(params, batch(N), batch(R))
        return program.compile().cost_analysis()["flops"]

    one, every = convolutions(0), convolutions("all")
    flops, _ = costs()
    backward = flops["gradient N R"] - flops["forward N R"]
    assert every - one <= 1.05 * backward * 1.04


def test_rescale_never_computes_the_variation():
    model, params = dilated_network()
    attr = jaxlift.attribute(model, argnums=1)
    text = jax.jit(lambda p, x, r: attr(p, x, reference=r)).lower(params, batch(N), batch(R)).as_text()
    weights = [line for line in text.splitlines() if "stablehlo.abs" in line and f"{FILTERS}x{FILTERS}" in line]
    assert weights == []


def test_a_deep_pointwise_function_is_a_graph():
    """Twenty doublings of the number of paths: a tree would have a million nodes."""

    def fun(x):
        for _ in range(20):
            x = jnp.sin(x) * x
        return x

    program = jax.make_jaxpr(lambda x, r: jaxlift.vjp(fun, x, r)[1](jnp.float32(1)))(
        jnp.float32(0.5), jnp.float32(0.25)
    )
    assert len(program.eqns) < 4000


def test_what_a_maximum_makes_of_a_cotangent_is_computed_once(monkeypatch):
    """RevealCancel has two multipliers for the activation before it, and XLA works out for each what is cheap.

    XLA of jaxlib 0.12 doesn't, and to say so costs nothing there.
    """
    rng = np.random.default_rng(1)
    kernels = [rng.normal(size=(5, a, b)).astype(np.float32) / 4 for a, b in ((4, 16), (16, 16))]

    def model(x):
        for kernel in kernels:
            x = jax.nn.relu(conv(x, kernel))
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 4, 1), (1, 4, 1), "VALID")
        return x.sum((1, 2))

    def bytes_accessed():
        attr = jaxlift.attribute(model, rule="revealcancel")
        program = compiled(lambda x, r: attr(x, reference=r), batch(4), batch(6))
        return program.cost_analysis()["bytes accessed"]

    kept = bytes_accessed()
    monkeypatch.setattr(reductions, "once", lambda x: x)
    assert kept < (0.98 if jax.__version_info__ < (0, 12) else 1.001) * bytes_accessed()


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("begins_with", ["embeddings", "patches"])
def test_a_stream_of_residuals_is_summed_once(begins_with):
    """Blocks that normalise the stream and add to it: what they move grows with their number, not with its square. The
    stream of a vision transformer begins with a convolution.
    """

    def bytes_accessed(blocks):
        def model(x):
            x = conv(x, jnp.ones((1, 32, 32))) if begins_with == "patches" else x
            for _ in range(blocks):
                x = x + jax.nn.relu(layer_norm(x) @ jnp.ones((32, 32)))
            return x.sum((1, 2))

        attr = jaxlift.attribute(model)
        program = compiled(lambda x, r: attr(x, reference=r), jnp.ones((2, 4, 32)), jnp.zeros((3, 4, 32)))
        return program.cost_analysis()["bytes accessed"]

    few, more, most = map(bytes_accessed, (4, 8, 16))
    assert most - more == pytest.approx(2 * (more - few), rel=0.05)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_blocks_have_the_same_kernels(rule):
    """XLA compiles a kernel once. Those that only one of six blocks has are few: of the sums of the outputs and of the
    scores, of the input, and of the last block's cotangents.
    """

    def model(x):
        for _ in range(6):
            x = x + jax.nn.relu(layer_norm(x) @ jnp.ones((32, 64))) @ jnp.ones((64, 32))
        return x.mean((1, 2))

    attr = jaxlift.attribute(model, rule=rule)
    program = compiled(lambda x, r: attr(x, reference=r), jnp.ones((2, 16, 32)), jnp.zeros((4, 16, 32)))
    fusions = re.findall(r"\n%(?:fused|wrapped)_\S+ .*?\n}", program.as_text(), re.DOTALL)
    kernels = Counter(tuple(re.findall(r" = (\S+ [\w-]+)\(", fusion)) for fusion in fusions)
    assert kernels.most_common(1)[0][1] >= 6
    assert list(kernels.values()).count(1) <= 12


@pytest.mark.usefixtures("optimized")
def test_no_kernel_repeats_or_halves_what_a_norm_needs():
    """XLA's kernels that sum can't read what is repeated, or divided by 2: it would be written down for them."""

    def model(x):
        return jnp.tanh(layer_norm(x @ jnp.ones((32, 64))) @ jnp.ones((64, 32))).mean((1, 2))

    attr = jaxlift.attribute(model)
    program = compiled(lambda x, r: attr(x, reference=r), jnp.ones((2, 16, 32)), jnp.zeros((4, 16, 32)))
    fusions = re.findall(r"\n%(?:fused|wrapped)_\S+ .*? -> f32\[([\d,]+)\](.*?)\n}", program.as_text(), re.DOTALL)
    made = [(shape, set(re.findall(r" = \S+ ([\w-]+)\(", fusion))) for shape, fusion in fusions]
    assert not [
        names for shape, names in made if shape.startswith("2,4,1") and names <= {"parameter", "bitcast", "broadcast"}
    ]
    centred = Counter(
        math.prod(map(int, shape.split(",")))
        for shape, names in made
        if "subtract" in names and not names & {"reduce", "add"}
    )
    assert centred == {2 * 16 * 64: 2, 4 * 16 * 64: 2}  # squared and normalised, of inputs and of references


@pytest.mark.parametrize(
    ("norm", "divides"), [(layer_norm, 0), (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), 1)]
)
def test_what_a_norm_divides_by_is_inverted_once_a_row(norm, divides):
    """Not once for each element. Besides there are the divisions of the norm itself, of both sides."""
    program = jax.make_jaxpr(lambda x, r, m: jaxlift.vjp(norm, x, r)[1](m))(*jnp.ones((3, 5, 32)))
    by_values = [
        eqn.outvars[0].aval.size
        for eqn in program.eqns
        if eqn.primitive is lax.div_p and not isinstance(eqn.invars[1], jax.extend.core.Literal)
    ]
    assert by_values == [*[5 * 32] * (2 * divides), 5]
