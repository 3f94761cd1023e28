"""What the TPU's compiler makes of attributions, on a machine without one: traffic, copies, precision, slices.

Needs `jax[tpu]`, which holds the compiler; nothing runs on a device. (The tests of two GPUs need `jax[cuda12]` instead,
and JAX_PLATFORMS=cpu where there is none.) Figures are of jax.grad's on N R rows, at the same precision of products.
"""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxlift
from tests import spread
from tests.benchmarks import in_jax
from tests.benchmarks.accelerators import programs
from tests.benchmarks.described import compiled, devices, kernels, size
from tests.benchmarks.networks import data, weights_of

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("as_users_write", "optimized")]


@pytest.fixture(autouse=True)
def compiler(request):
    if "gpu" not in request.node.name:
        pytest.importorskip("libtpu", reason="the TPU's compiler comes with jax[tpu]")


def of_network(name, **options):
    """The contributions to a network's output, of inputs and shared references."""
    attr = jaxlift.attribute(partial(in_jax.MODELS[name], weights_of(name)), pairing="shared", **options)
    return lambda x, r: attr(x, reference=r)


@cache
def figures(name, n, r, program, target="tpu"):
    args = (weights_of(name), *data(name, n, r))
    with jax.default_matmul_precision("highest"):
        return compiled(programs(name, n, r)[program], *args, target=target).figures()


# What each comes to, and a little: a compiler's next version may do better or worse by some percent.
@pytest.mark.parametrize(
    ("name", "n", "r", "program", "most"),
    [
        ("mlp", 160, 1, "rescale", 1.5),
        ("mlp", 8, 20, "rescale", 1.25),
        ("activations", 160, 1, "rescale", 1.25),
        ("activations", 8, 20, "rescale", 1.2),
        ("transformer", 8, 20, "rescale", 0.85),
        pytest.param("transformer", 160, 1, "rescale", 1.2, marks=pytest.mark.slow),
        pytest.param("mnist_cnn", 160, 1, "rescale", 1.4, marks=pytest.mark.slow),
        ("mnist_cnn", 128, 4, "rescale", 1.6),
        pytest.param("mnist_cnn", 8, 20, "rescale", 2.2, marks=pytest.mark.slow),
        ("activations", 160, 1, "revealcancel", 3.1),
        pytest.param("bpnet", 160, 1, "rescale", 1.2, marks=pytest.mark.slow),
        pytest.param("bpnet", 8, 20, "rescale", 1.3, marks=pytest.mark.slow),
        pytest.param("bpnet", 128, 4, "rescale", 0.9, marks=pytest.mark.slow),
    ],
)
def test_traffic(name, n, r, program, most):
    own, of_gradient = (figures(name, n, r, each)["bytes"] for each in (program, "gradient"))
    assert own < most * of_gradient


@pytest.mark.slow
def test_what_a_further_reference_costs():
    two, four = (figures("mnist_cnn", 128, r, "rescale")["bytes"] for r in (2, 4))
    gradients = [figures("mnist_cnn", 128, r, "gradient")["bytes"] for r in (2, 4)]
    assert four - two < 1.5 * (gradients[1] - gradients[0])


@pytest.mark.slow
@pytest.mark.parametrize(("n", "r"), [(160, 1), (8, 20)])
def test_a_transformer_on_a_gpu_beside_the_program_by_hand(n, r):
    """Kernels started, and what they move. A layer norm is one of them, forwards and backwards."""
    pytest.importorskip("jax_cuda12_plugin", reason="the GPU's compiler comes with jax[cuda12]")
    own, by_hand = (figures("transformer", n, r, program, "gpu") for program in ("rescale", "exact_floor"))
    assert own["kernels"] < 1.15 * by_hand["kernels"]
    assert own["bytes"] < 1.1 * by_hand["bytes"]


@pytest.mark.parametrize("name", ["mlp", "activations"])
@pytest.mark.parametrize(("n", "r"), [(160, 1), (8, 20)])
def test_no_copies(name, n, r):
    assert figures(name, n, r, "rescale")["copies"] == figures(name, n, r, "gradient")["copies"] == 0


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("precision", ["highest", "high", None])
def test_precision_in_the_compiled_text(rule, precision):
    explain = of_network("mlp", rule=rule, precision=precision)
    text = compiled(explain, *data("mlp", 128, 1), target="tpu").text
    products = [line for line in text.splitlines() if re.search(r" (convolution|dot)\(", line)]
    assert products
    said = [re.findall(r"operand_precision=\{(\w+),(\w+)\}", line) for line in products]
    assert all(each == ([(precision, precision)] if precision else []) for each in said)


SLICES = {8: "v5e:2x4", 16: "v5e:4x4"}


def sliced(chips, rule, over_references=False):
    """The compiled program on a slice: examples spread over it, and references over a second axis of two, if at all."""
    described = np.array(devices("tpu", SLICES[chips]))
    shape = (chips // 2, 2) if over_references else (chips, 1)
    mesh = Mesh(described.reshape(shape), ("examples", "references"))
    split = [
        NamedSharding(mesh, PartitionSpec(axis)) for axis in ("examples", "references" if over_references else None)
    ]
    return compiled(of_network("mlp", rule=rule), *data("mlp", 256, 4), target="tpu", in_shardings=split)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("chips", [8, 16])
def test_examples_over_a_slice(chips, rule):
    """No collective; and each chip's part of the memory."""
    found = sliced(chips, rule)
    assert not spread.collectives(found.text)
    [x] = re.findall(r"ENTRY .*?\((?:\S+: )?(f32\[\d+,784\])", found.text)[:1]
    assert size(x) == 256 // chips * 784 * 4


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_references_over_a_second_axis(rule):
    """The mean over references is the one reduction."""
    assert [kind for kind, _ in spread.collectives(sliced(8, rule, over_references=True).text)] == ["all-reduce"]


def test_kernels_are_counted():
    """Those of a loop as often as it runs."""

    def loop(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, length=5)[0]

    text = compiled(loop, jnp.ones((128, 128)), target="tpu").text
    inside = len(kernels(text)) - len(kernels(text, loops=False))
    assert inside > 0
    assert inside % 4 == 0


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_a_model_over_a_slice(rule):
    """Tensor parallel: parameters stay where they are, and sums over hidden units are the only thing that travels."""
    mesh = Mesh(np.array(devices("tpu", "v5e:2x4")), ("model",))
    up, down, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, "model"), ("model",), ()))
    w = {"up": np.ones((512, 1024), np.float32), "down": np.ones((1024, 512), np.float32)}
    shardings = {"up": up, "down": down}

    def model(w, x):
        return jnp.tanh(x + jax.nn.relu(x @ w["up"]) @ w["down"]).sum(1)

    attr = jaxlift.attribute(model, argnums=1, rule=rule)
    args = (w, *(np.ones(shape, np.float32) for shape in ((256, 512), (512,))))
    found = compiled(
        lambda w, x, r: attr(w, x, reference=r), *args, target="tpu", in_shardings=(shardings, whole, whole)
    )
    kinds = [kind for kind, _ in spread.collectives(found.text)]
    assert set(kinds) == {"all-reduce"}
    # Forward of both sides and back; RevealCancel's variation goes forth and back besides.
    assert len(kinds) <= {"rescale": 3, "revealcancel": 5}[rule]


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_references_of_a_convolutional_network_over_a_second_axis(rule):
    """Mapped, as the README says: the compiler can't divide rows of pairs by both axes, and would gather them."""
    explain = of_network("mnist_cnn", rule=rule)
    mesh = Mesh(np.array(devices("tpu", "v5e:2x4")).reshape(4, 2), ("examples", "references"))
    specs = PartitionSpec("examples"), PartitionSpec("references")

    def mapped(x, references):
        return jax.shard_map(
            lambda x, r: jax.lax.pmean(explain(x, r), "references"),
            mesh=mesh,
            in_specs=specs,
            out_specs=specs[0],
        )(x, references)

    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    found = compiled(mapped, *data("mnist_cnn", 64, 8), target="tpu", in_shardings=shardings)
    assert [kind for kind, _ in spread.collectives(found.text)] == ["all-reduce"]


WIDE, HIDDEN, EXAMPLES = 128, 256, 192


@cache
def spread_network(layout, target, count, program):
    """The compiled program of a network whose constraints say how it lies on a mesh; of two pairs for each example."""
    described = devices(target, SLICES[count] if target == "tpu" else f"{count}x1x1")
    mesh = Mesh(np.array(described).reshape(spread.mesh_shape(layout, count)), ("data", "model"))
    arrays = spread.weights(WIDE, HIDDEN), *(np.ones((rows, WIDE), np.float32) for rows in (EXAMPLES, 2))

    def explain(w, x, r):
        model = partial(spread.network, mesh, w)
        if program == "gradient":
            return jax.grad(lambda x: model(x).sum())(x)
        return jaxlift.attribute(model, rule=program, pairing="shared")(x, reference=r)

    lie = (*spread.shardings(mesh, layout), NamedSharding(mesh, PartitionSpec()))
    with jax.default_matmul_precision("highest"):
        return compiled(explain, *arrays, target=target, in_shardings=lie)


@pytest.mark.parametrize("layout", spread.LAYOUTS)
@pytest.mark.slow
@pytest.mark.parametrize("chips", [8, 16])
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_a_network_over_a_slice(rule, chips, layout):
    """Each chip has its part of the parameters and of the examples, and does its part of the work."""
    found, gradient = (spread_network(layout, "tpu", chips, program) for program in (rule, "gradient"))
    kernel = WIDE * HIDDEN
    spread.check_exchanges(found.text, layout, chips, EXAMPLES, kernel)
    parts, rows = 2 if layout == "tensor parallel" else chips, EXAMPLES // spread.mesh_shape(layout, chips)[0]
    of_arguments = found.executable.memory_analysis().argument_size_in_bytes
    assert of_arguments <= 4 * (2 * spread.LAYERS * kernel / parts + (rows + 2) * WIDE) + 8192  # and their tiles' rest
    # A backward pass of two pairs for each example; RevealCancel's variations go forth and back besides.
    assert found.flops < {"rescale": 1.8, "revealcancel": 4}[rule] * gradient.flops


@pytest.mark.parametrize("layout", ["tensor parallel", "fully sharded"])
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_a_network_over_two_gpus(rule, layout):
    pytest.importorskip("jax_cuda12_plugin", reason="the GPU's compiler comes with jax[cuda12]")
    spread.check_exchanges(spread_network(layout, "gpu", 2, rule).text, layout, 2, EXAMPLES, WIDE * HIDDEN)
