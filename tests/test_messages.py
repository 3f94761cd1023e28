"""What newcomers do, and what they are told: what was expected, what came, what to write."""

import inspect

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name

import jaxlift
from jaxlift import metrics, plot, references

X, R, KEY = jnp.asarray(np.arange(12, dtype=np.float32).reshape(4, 3)), jnp.zeros(3), jax.random.key(0)
W = jnp.ones((3, 2))
DNA = jnp.asarray(np.eye(4, dtype=np.float32)[[[0, 1, 2, 3, 3], [2, 2, 1, 0, 3]]])
CHANNELS_FIRST = DNA.transpose(0, 2, 1)


def model(x):
    return jnp.tanh(x @ W).sum(1)


def two_outputs(x):
    return jnp.tanh(x @ W)


def of_dna(x):
    return x[:, :, 0].sum(1)


def in_numpy(x):
    return np.tanh(x).sum(1)


def by_numbers(x):
    return x.sum(1) if x.sum() > 0 else -x.sum(1)


def of_two(a, b):
    return jnp.tanh(a @ W + b @ W).sum(1)


def without_memory(x):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")


def named(x):
    return checkpoint_name(x @ W, "hidden").sum(1)


def attr(fun=model, **options):
    return jaxlift.attribute(fun, **options)


class WithStatistics(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x).sum(1)


class WithDropout(nnx.Module):
    def __init__(self):
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dropout(x).sum(1)


CASES = {
    # Names: of peers, misspelt, and of what isn't there.
    "baselines": (
        lambda: attr()(X, baselines=R),
        TypeError,
        ["attr has no option baselines=", "attr(x, reference=...)"],
    ),
    "baselines, before": (
        lambda: attr(baselines=R),
        TypeError,
        ["attribute has no option baselines=", "with the call"],
    ),
    "reference, before": (lambda: attr(reference=R), TypeError, ["no option reference=", "attr(x, reference=...)"]),
    "references, before": (
        lambda: attr(references="paired"),
        TypeError,
        ["attr(x, reference=...)", "pairing='shared'"],
    ),
    "delta of a peer": (lambda: attr(return_convergence_delta=True), TypeError, ["full=True", "delta"]),
    "delta of a peer, called": (
        lambda: attr()(X, reference=R, return_convergence_delta=True),
        TypeError,
        ["full=True"],
    ),
    "convergence_delta": (lambda: attr(convergence_delta=True), TypeError, ["full=True returns scores, delta"]),
    "with_outputs": (lambda: attr(with_outputs=True), TypeError, ["full=True", "output_reference"]),
    "cancellation": (lambda: attr(cancellation=True), TypeError, ["full=True", "cancellation"]),
    "standard_error": (lambda: jaxlift.shapley(model, standard_error=True), TypeError, ["full=True", "standard_error"]),
    "n_steps": (lambda: jaxlift.integrated_gradients(model, n_steps=3), TypeError, ["n_steps=", "steps="]),
    "attribute of the result": (lambda: attr().attribute(X), AttributeError, [".attribute", "attr(x, reference=...)"]),
    "shap_values": (lambda: attr().shap_values(X), AttributeError, [".shap_values", "attr(x, reference=...)"]),
    "background, before": (lambda: jaxlift.attribute(model, R), TypeError, ["attribute takes the model alone", "name"]),
    "no layer": (
        lambda: jaxlift.score_cam(model),
        TypeError,
        ["score_cam needs layer=", "checkpoint_name(h, 'hidden')"],
    ),
    "misspelt": (
        lambda: attr(normalise_target=True),
        TypeError,
        ["normalise_target=", "did you mean normalize_target="],
    ),
    "misspelt, of a method": (lambda: jaxlift.occlusion(model, windows=(1,)), TypeError, ["did you mean window="]),
    "misspelt, called": (lambda: attr()(X, referense=R), TypeError, ["did you mean reference="]),
    "an option, called": (
        lambda: attr()(X, reference=R, full=True),
        TypeError,
        ["no option full=", "attribute(model, full=...)"],
    ),
    "Captum's option, called": (
        lambda: attr()(X, reference=R, return_convergence_delta=True),
        TypeError,
        ["full=True returns scores, delta", "attribute(model, ...)"],
    ),
    "the model's keyword": (
        lambda: attr()(X, reference=R, train=False),
        TypeError,
        ["no option train=", "attribute(lambda x: model(x, train=...))"],
    ),
    "reference by its place": (
        lambda: attr()(X, R),
        TypeError,
        ["call attr(..., reference=...)", "by its place is the model's own"],
    ),
    "places": (lambda: attr(argnums="x"), TypeError, ["argnums='x' must be an int or a tuple of ints"]),
    "places of rows": (lambda: attr(batch_argnums=(1.0,)), TypeError, ["batch_argnums=(1.0,) must be an int"]),
    "normalize_target": (lambda: attr(normalize_target="yes"), TypeError, ["'yes' must be True or False"]),
    "smooth, of Captum": (
        lambda: jaxlift.smooth(attr(), noise=1.0, key=KEY, nt_samples=5),
        TypeError,
        ["smooth has no option nt_samples=", "samples="],
    ),
    "smooth tokens": (
        lambda: jaxlift.smooth(attr(), noise=1.0, key=KEY)(X.astype(int), reference=R),
        TypeError,
        ["dtype int32", "jaxlift.below", "jaxlift.above"],
    ),
    "of another method": (lambda: attr(groups=None), TypeError, ["no option groups=", "expected one of target, "]),
    # Targets.
    "an index in an array": (
        lambda: attr(two_outputs, target=np.asarray(7))(X, reference=R),
        ValueError,
        ["target 7 is out of range"],
    ),
    "an index of NumPy": (
        lambda: attr(two_outputs)(X, reference=R, target=np.int64(7)),
        ValueError,
        ["target 7 is out of range"],
    ),
    "a tuple of labels": (
        lambda: attr(two_outputs, target=(0, 1, 0, 1))(X, reference=R),
        ValueError,
        ["has 4 indices", "jnp.asarray(target)"],
    ),
    "a mask of outputs": (
        lambda: attr(two_outputs, target=jnp.array([True, False]))(X, reference=R),
        TypeError,
        ["dtype is bool", "target.astype(float)"],
    ),
    "a function of labels": (
        lambda: attr(two_outputs, target=lambda y: y[jnp.arange(4), jnp.array([0, 1, 0, 1])])(X, reference=R),
        ValueError,
        ["function of the outputs must return (N, ...)", "shape (4,)", "target=labels"],
    ),
    "one-hot labels": (
        lambda: attr(two_outputs, target=jnp.eye(2, dtype=int)[jnp.array([0, 1, 1, 0])])(X, reference=R),
        ValueError,
        ["(N,), but their shape is (4, 2)", "target.argmax(1)"],
    ),
    "labels in a column": (
        lambda: jax.jit(attr(two_outputs))(X, reference=R, target=jnp.zeros((4, 1), int)),
        ValueError,
        ["their shape is (4, 1)", "target[:, 0]"],
    ),
    "labels as floats": (
        lambda: attr(two_outputs, target=jnp.array([0.0, 1, 1, 0]))(X, reference=R),
        ValueError,
        ["weights of shape (4,)", "target.astype(int)"],
    ),
    "float target": (lambda: attr(two_outputs, target=1.0), TypeError, ["target=1.0", "write target=1."]),
    "half a target": (lambda: attr(two_outputs, target=0.5), TypeError, ["target=0.5 must be None, an int", "'all'"]),
    "true target": (lambda: attr(two_outputs, target=True), TypeError, ["target=True must be None, an int"]),
    "target of floats": (lambda: attr(two_outputs, target=(1.0,)), TypeError, ["target=(1.0,)", "a tuple of ints"]),
    "target, called": (lambda: attr(two_outputs)(X, reference=R, target=1.0), TypeError, ["write target=1."]),
    "label, called": (
        lambda: attr(two_outputs)(X, reference=R, target=jnp.array([0, 1, 2, 0])),
        ValueError,
        ["between 0 and 1", "between 0 and 2"],
    ),
    "target of a metric": (
        lambda: metrics.deletion(two_outputs, X, X, reference=R, steps=2, target=1.0),
        TypeError,
        ["write target=1."],
    ),
    # No batch.
    "one example": (lambda: attr()(X[0], reference=R), ValueError, ["batch of one example, of shape (1,)", "x[None]"]),
    "one example of anything": (
        lambda: attr(lambda x: jnp.tanh(x).sum(-1))(X[0], reference=R),
        ValueError,
        ["must be batched", "x[None]"],
    ),
    "Equinox": (
        lambda: attr(equinox.nn.Linear(3, 1, key=KEY))(X, reference=R),
        ValueError,
        ["of shape (1, 3)", "jax.vmap(model)"],
    ),
    "a number": (lambda: attr()(1.0, reference=0.0), ValueError, ["batch axis", "x[None]"]),
    # Inputs and references.
    "list": (lambda: attr()([1.0, 2.0, 3.0], reference=R), TypeError, ["list of numbers", "jnp.asarray(x)"]),
    "text": (lambda: attr()("ACGT", reference=R), TypeError, ["must be arrays", "'ACGT'"]),
    "references as a list": (
        lambda: attr()(X, reference=[R, R]),
        ValueError,
        ["got a list", "jnp.stack(reference)"],
    ),
    "examples as a list": (lambda: attr()([X[0], X[1]], reference=R), ValueError, ["jnp.stack(x)"]),
    "text as reference": (
        lambda: attr()(X, reference="zeros"),
        TypeError,
        ["holds 'zeros'", "jnp.zeros(x.shape[1:])"],
    ),
    "list as reference": (
        lambda: attr()(X, reference=[0.0, 0.0, 0.0]),
        ValueError,
        ["one array", "a list", "jnp.asarray(reference)"],
    ),
    "tuple": (
        lambda: attr(of_two)((X, X), reference=(R, R)),
        ValueError,
        ["a tuple of arrays", "attr(a, b, reference=(ra, rb)) with argnums=(0, 1)"],
    ),
    "tokens": (
        lambda: attr(lambda t: W[t].sum((1, 2)))(X.astype(int), reference=R.astype(int)),
        TypeError,
        ["dtype int32", "checkpoint_name", "layer="],
    ),
    "fractions of tokens": (
        lambda: jaxlift.occlusion(lambda t: W[t].sum((1, 2)))(X.astype(int) % 3, reference=R + 0.5),
        TypeError,
        ["the reference has dtype float32", "int32", "integers"],
    ),
    # Models.
    "array as model": (lambda: attr(W), TypeError, ["a model is a function", "dtype float32 and shape (3, 2)"]),
    "text as model": (lambda: attr("model.keras"), TypeError, ["a model is a function", "'model.keras'"]),
    "attribution as model": (lambda: attr(attr()), TypeError, ["expected a model", "attribution function"]),
    "metric of an array": (
        lambda: metrics.deletion(W, X, X, reference=R, steps=2),
        TypeError,
        ["a model is a function"],
    ),
    "NumPy": (lambda: attr(in_numpy)(X, reference=R), TypeError, ["leaves JAX", "jax.numpy"]),
    "NumPy, where": (lambda: attr(in_numpy)(X, reference=R), TypeError, ["test_messages.py:"]),
    "a choice by numbers": (
        lambda: attr(by_numbers)(X, reference=R),
        TypeError,
        ["asks for the numbers of an array", "test_messages.py:", "jnp.where"],
    ),
    "a Python number": (
        lambda: attr(lambda x: float(x.max()) * x.sum(1))(X, reference=R),
        TypeError,
        ["asks for the numbers of an array"],
    ),
    "a mask that selects": (
        lambda: attr(lambda x: x[x > 0].sum()[None])(X, reference=R),
        TypeError,
        ["asks for the numbers of an array", "array[mask]"],
    ),
    "unbound Linen module": (
        lambda: attr(linen.Dense(2))(X, reference=R),
        TypeError,
        ["isn't called as a Linen module is", "module.apply(variables, x)"],
    ),
    "Linen parameters for variables": (
        lambda: attr(lambda x: linen.Dense(1).apply({"kernel": W[:, :1]}, x))(X, reference=R),
        TypeError,
        ["isn't called as a Linen module is", "{'params': ..., ...}"],
    ),
    "rows of two, unsaid": (
        lambda: attr(lambda x, mask: model(x * mask))(X[:2], jnp.arange(2.0)[:, None], reference=R),
        ValueError,
        ["name it in batch_argnums"],
    ),
    "too few rows": (
        lambda: attr(lambda x, mask: model(x * mask), batch_argnums=1)(X, X[:2], reference=R),
        ValueError,
        ["argument 1 is named in batch_argnums", "each of the 4 examples", "(2, 3)"],
    ),
    "a tuple of outputs": (
        lambda: attr(lambda x: (model(x), {"state": x}))(X, reference=R),
        ValueError,
        ["returns a tuple of 2 arrays", "outputs[0]"],
    ),
    "another's argument": (
        lambda: attr(lambda w, x: (x @ w).sum(1))(W, X, reference=R),
        ValueError,
        ["doesn't fit an input of shape (3, 2)", "argnums= says which"],
    ),
    "NNX statistics": (
        lambda: attr(WithStatistics())(X, reference=R),
        TypeError,
        ["changes its own state", "model.eval()", "nnx.merge(graphdef, state, copy=True)"],
    ),
    "NNX dropout": (lambda: attr(WithDropout())(X, reference=R), TypeError, ["random numbers", "model.eval()"]),
    "batch statistics": (
        lambda: attr(lambda x: (x - x.mean(0, keepdims=True)).sum(1))(X, reference=R),
        ValueError,
        ["depend on the other examples", "model.eval()", "use_running_average=True", "inference_mode"],
    ),
    "module as layer": (
        lambda: attr(layer=equinox.nn.Linear(3, 1, key=KEY)),
        TypeError,
        ["layer must be a name", "got Linear", "checkpoint_name"],
    ),
    "module to look below": (lambda: jaxlift.below(named, 3)(X), TypeError, ["name must be a name", "got int"]),
    # Axes of channels, and what is one-hot.
    "channel_axis": (
        lambda: attr(of_dna, output="hypothetical", channel_axis=9)(DNA, reference=DNA[0]),
        ValueError,
        ["channel_axis=9 must be an axis of one example", "0 to 1, or -2 to -1"],
    ),
    "channel_axis of maps": (
        lambda: jaxlift.grad_cam(named, layer="hidden", channel_axis=9)(X),
        ValueError,
        ["channel_axis=9", "0 to 0, or -1 to -1"],
    ),
    "channels first": (
        lambda: attr(of_dna, output="hypothetical")(CHANNELS_FIRST, reference=CHANNELS_FIRST[0]),
        ValueError,
        ["one-hot along axis 1", "shape is (4, 5)", "along axis 0: say channel_axis=0"],
    ),
    "channels first, under jit": (
        lambda: jax.jit(attr(of_dna, output="hypothetical"))(CHANNELS_FIRST, reference=CHANNELS_FIRST[0]),
        ValueError,
        ["shape (4, 5)", "say channel_axis=0, or channel_axis=-1"],
    ),
    "frequencies, channels first": (
        lambda: references.frequencies(CHANNELS_FIRST),
        ValueError,
        ["frequencies needs examples that are one-hot along axis 1", "say channel_axis=0"],
    ),
    "hypothetical numbers": (
        lambda: attr(output="hypothetical")(X, reference=R),
        ValueError,
        ["output='hypothetical' needs examples that are one-hot", "use one-hot examples"],
    ),
    "mutagenesis of numbers": (lambda: jaxlift.mutagenesis(model)(X), ValueError, ["mutagenesis needs", "one-hot"]),
    "mutagenesis, channels first": (
        lambda: jaxlift.mutagenesis(of_dna)(CHANNELS_FIRST),
        ValueError,
        ["along axis 0: say channel_axis=0"],
    ),
    "channels to sum": (
        lambda: jaxlift.sum_channels(attr(), axis=5)(X, reference=R),
        ValueError,
        ["axis=5 must be an axis of one example", "0 to 0, or -1 to -1"],
    ),
    # Keys, counts and sizes.
    "key of smooth": (lambda: jaxlift.smooth(attr(), noise=1.0, key=0), TypeError, ["PRNG key", "key(0)", "got 0"]),
    "key of shapley": (lambda: jaxlift.shapley(model, samples=2, key=0), TypeError, ["PRNG key", "got 0"]),
    "key of a metric": (
        lambda: metrics.infidelity(model, X, X, perturbation=1.0, key=3),
        TypeError,
        ["PRNG key", "got 3"],
    ),
    "key of a shuffle": (lambda: references.dinucleotide_shuffle(DNA[0], 0), TypeError, ["PRNG key", "got 0"]),
    "a table of objects": (
        lambda: attr()(np.asarray(X).astype(object), reference=R),
        TypeError,
        ["arrays of numbers", "dtype object", "x.astype(np.float32)"],
    ),
    "text to shuffle": (
        lambda: references.dinucleotide_shuffle("ACGT", KEY),
        TypeError,
        ["one-hot rows", "'ACGT'", "jax.nn.one_hot"],
    ),
    "no shuffles": (lambda: references.dinucleotide_shuffle(DNA[0], KEY, 0), ValueError, ["count=0", "1 at least"]),
    "nothing to shuffle": (
        lambda: references.dinucleotide_shuffle(0 * DNA[0], KEY),
        ValueError,
        ["no base at all"],
    ),
    "numbers to shuffle": (lambda: references.dinucleotide_shuffle(0.5 * DNA[0], KEY), ValueError, ["one-hot"]),
    "window": (
        lambda: jaxlift.occlusion(model, window=(9,))(X, reference=R),
        ValueError,
        ["window=(9,) is larger than an example", "(3,)"],
    ),
    "memory": (
        lambda: jaxlift.within_memory(attr(), X, reference=R, memory="lots"),
        ValueError,
        ["memory='lots' must be a number of bytes", "'4GB'"],
    ),
    "memory of a compiled function": (
        lambda: jaxlift.within_memory(jax.jit(attr()), X, reference=R, memory="4GB"),
        TypeError,
        ["what jaxlift.attribute or another method returns", "jit"],
    ),
    "out of memory": (
        lambda: attr(without_memory)(X, reference=R),
        MemoryError,
        ["reference_batch_size=", "batch_size=", "within_memory", "allocating 99 bytes"],
    ),
    # Wrappers and metrics.
    "smooth of a model": (
        lambda: jaxlift.smooth(model, noise=1.0, key=KEY)(X, reference=R),
        TypeError,
        ["smooth takes an attribution function", "no reference=", "smooth(jaxlift.attribute(model), ...)"],
    ),
    "smooth of an array": (lambda: jaxlift.smooth(W, noise=1.0, key=KEY), TypeError, ["smooth takes", "shape (3, 2)"]),
    "sums of a model": (
        lambda: jaxlift.sum_channels(model)(X, reference=R),
        TypeError,
        ["sum_channels takes an attribution function"],
    ),
    "noise on another argument": (
        lambda: jaxlift.smooth(attr(), noise=1.0, key=KEY, argnums=1)(X, reference=R),
        TypeError,
        ["argnums=1 must be among the positional arguments"],
    ),
    "parameters first": (
        lambda: attr(lambda params, x: model(x))({"w": W, "b": R[:2]}, X, reference=R),
        ValueError,
        ["one batch axis", "argnums="],
    ),
    "groups of pixels": (
        lambda: jaxlift.occlusion(of_dna, groups=np.arange(5))(DNA, reference=DNA[0]),
        ValueError,
        ["shape (5, 4)", "dtype int64 and shape (5,)", "groups[..., None]"],
    ),
    "channels first to shuffle": (
        lambda: references.dinucleotide_shuffle(CHANNELS_FIRST[0], KEY),
        ValueError,
        ["(4, 5)", "x.T"],
    ),
    "variance of one": (
        lambda: jaxlift.smooth(attr(), noise=1.0, key=KEY, samples=1, statistic="variance"),
        ValueError,
        ["samples=1", "2 at least"],
    ),
    "sensitivity of scores": (
        lambda: metrics.sensitivity(X, X, radius=0.1, key=KEY),
        TypeError,
        ["sensitivity takes an attribution function"],
    ),
    "deletion of a function": (
        lambda: metrics.deletion(model, X, attr(), reference=R, steps=2),
        TypeError,
        ["the scores must be arrays", "call it"],
    ),
    "steps": (lambda: metrics.deletion(model, X, X, reference=R, steps=2.0), ValueError, ["steps=2.0 must be an int"]),
    "no perturbation": (
        lambda: metrics.infidelity(model, X, X, perturbation=R, key=KEY),
        ValueError,
        ["perturbation is 0", "noisy_baseline"],
    ),
    "not fresh": (
        lambda: metrics.parameter_randomisation(lambda w, x: x * w[0], [W[:, 0]], X, fresh=[W[:, 0]]),
        ValueError,
        ["fresh has the numbers of params", "shuffled(params, key)"],
    ),
    "conductance of tokens": (
        lambda: jaxlift.conductance(lambda x: named(x * 1.0), layer="hidden")(X.astype(int), reference=R.astype(int)),
        TypeError,
        ["integers (dtype int32) there is none", "embeddings"],
    ),
    "unit": (
        lambda: jaxlift.conductance(named, layer="hidden", unit=[1])(X, reference=R),
        ValueError,
        ["unit=[1] must be one int for each axis"],
    ),
    # Pictures.
    "attribution to draw": (
        lambda: plot.bars(attr(full=True)(X, reference=R)),
        TypeError,
        ["scores must be an array", ".scores of one example"],
    ),
    "batch to draw": (lambda: plot.bars(X), ValueError, ["(F,) of one example, got shape (4, 3)"]),
    "sequences to draw": (lambda: plot.logo(CHANNELS_FIRST), ValueError, ["channels come last", "one by one"]),
    "methods to draw": (lambda: plot.side_by_side([X, X]), TypeError, ["scores must be a dictionary"]),
    "curves to draw": (lambda: plot.curves(X, "deletion"), TypeError, ["outputs must be a dictionary"]),
    "sensitivity of everything": (
        lambda: metrics.sensitivity(attr(full=True), X, reference=R, radius=0.1, key=KEY),
        ValueError,
        ["scores alone", "full=True"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, error, pieces = CASES[case]
    with pytest.raises(error) as caught:
        call()
    for piece in pieces:
        assert piece in str(caught.value)


def test_no_warning_comes_before_the_error_on_a_missing_batch():
    """Warnings are errors here: one on pairs would come in its place."""
    with pytest.raises(ValueError, match="x\\[None\\]"):  # with as many numbers in the reference as examples
        attr(lambda x: x @ jnp.ones(3))(X[0], reference=X[0])
    with pytest.raises(TypeError, match="contracting dimensions"):
        attr(lambda x: x @ jnp.ones(3))(X[:, :0], reference=X[:, :0])


def test_an_error_of_the_models_own_is_shown():
    """With no advice on batches where it fails alike on any. Where it doesn't, that is what is wrong."""

    def broken(x):
        raise KeyError("embedding")

    with pytest.raises(KeyError, match="embedding") as caught:
        attr(broken)(X, reference=R)
    said = "The model raises this itself: on a batch of one example, of shape (1, 3), and on others."
    assert said in caught.value.__notes__

    def of_one(x):
        if x.ndim != 1:
            raise KeyError("embedding")
        return x.sum()

    with pytest.raises(ValueError, match=r"KeyError: 'embedding'.*jax.vmap\(model\)") as caught:
        attr(of_one)(X, reference=R)
    assert isinstance(caught.value.__cause__, KeyError)


def test_errors_of_this_package_pass_models():
    with pytest.raises(ValueError, match=r"^exactly one value must be named 'other'"):
        attr(jaxlift.below(named, "other"), target=0)(X, reference=R)


def test_not_finite():
    with pytest.warns(
        UserWarning, match=r"2 of 4 examples have a NaN or an infinity, the first of them example 1"
    ) as w:
        scores = attr()(X.at[1, 0].set(jnp.nan).at[3, 2].set(jnp.inf), reference=R)
    assert w[0].filename == __file__
    assert jnp.isnan(scores).all(1).tolist() == [False, True, False, True]


def test_reference_not_finite():
    references = jnp.stack([R, R.at[1].set(jnp.nan)])
    with pytest.warns(UserWarning, match="the reference has a NaN or an infinity") as w:
        scores = attr(average=False)(X, reference=references)
    assert w[0].filename == __file__
    assert jnp.isnan(scores).all((0, 2)).tolist() == [False, True]


def test_metrics_take_attributions():
    found = attr(full=True)(X, reference=R)
    np.testing.assert_array_equal(metrics.complexity(found), metrics.complexity(found.scores))
    assert (metrics.rank_agreement(found, found)[1:] > 0.99).all()


def test_labels_out_of_range_under_jit_give_nan():
    scores = jax.jit(attr(two_outputs))(X, reference=R, target=jnp.array([0, 1, 2, -3]))
    assert jnp.isnan(scores).all(1).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    "letters",
    [DNA, DNA.at[0, 0].set(0), DNA.at[1, 2].set(0.25), DNA.at[1, 2].set(jnp.array([0.5, 0, 0.5, 0])), DNA.astype(int)],
)
def test_sequences_with_unknown_letters_are_one_hot(letters):
    x = jnp.asarray(letters)
    if jnp.issubdtype(x.dtype, jnp.floating):
        assert attr(of_dna, output="hypothetical")(x, reference=x[0]).shape == x.shape
    assert jaxlift.mutagenesis(lambda x: of_dna(x) * 1.0)(x).shape == x.shape
    assert references.frequencies(x).shape == (5, 4)


def test_channels_first_where_it_is_said():
    for axis in (0, -2):
        channels_first = attr(lambda x: jnp.tanh(x[:, 0].sum(1)), output="hypothetical", channel_axis=axis)
        found = jax.jit(channels_first)(CHANNELS_FIRST, reference=CHANNELS_FIRST[0])
        channels_last = attr(lambda x: jnp.tanh(of_dna(x)), output="hypothetical")
        expected = jax.jit(channels_last)(DNA, reference=DNA[0])
        np.testing.assert_allclose(found, expected.transpose(0, 2, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("memory", ["1MB", "1 MiB", 1_000_000, 1e6])
def test_memory_in_units(memory):
    assert isinstance(jaxlift.within_memory(attr(), X, reference=R, memory=memory), type(attr()))


class TestTokens:
    """Integers are inputs where no derivative is taken."""

    embedding = jnp.asarray(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)
    tokens, reference = jnp.array([[3, 4, 5], [6, 7, 8]]), jnp.zeros(3, int)

    def model(self, tokens):
        return jnp.tanh(checkpoint_name(self.embedding[tokens], "embedded").sum(1)).sum(1)

    @pytest.mark.parametrize("method", [jaxlift.attribute, jaxlift.integrated_gradients, jaxlift.shapley])
    def test_below_a_layer(self, method):
        options = {"groups": np.arange(3)[:, None]} if method is jaxlift.shapley else {}
        found = jax.jit(method(self.model, layer="embedded", **options))(self.tokens, reference=self.reference)
        above = jax.jit(method(lambda e: jnp.tanh(e.sum(1)).sum(1), **options))
        expected = above(self.embedding[self.tokens], reference=self.embedding[self.reference])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("rule", ["revealcancel", "gradient"])
    def test_below_a_layer_by_other_rules(self, rule):
        attr = jaxlift.attribute(self.model, layer="embedded", rule=rule, full=True)
        found = jax.jit(attr)(self.tokens, reference=self.reference)
        assert found.scores.shape == (2, 3, 5)
        if rule == "revealcancel":
            np.testing.assert_allclose(found.delta, 0, atol=1e-5)

    @pytest.mark.parametrize("method", [jaxlift.occlusion, jaxlift.shapley])
    def test_by_changes(self, method):
        found = jax.jit(method(self.model))(self.tokens, reference=self.reference)
        assert jnp.issubdtype(found.dtype, jnp.floating)
        of_floats = jax.jit(method(lambda t: self.model(t.astype(int))))
        expected = of_floats(np.float32(self.tokens), reference=np.zeros(3, np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)

    def test_metrics(self):
        @jax.jit
        def curve_and_ends(tokens, reference):
            scores = jaxlift.occlusion(self.model)(tokens, reference=reference)
            curve = metrics.deletion(self.model, tokens, scores, reference=reference, steps=3)
            return curve[:, (0, -1)], jnp.stack([self.model(tokens), self.model(jnp.zeros((2, 3), int))], 1)

        np.testing.assert_allclose(*curve_and_ends(self.tokens, self.reference), rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        (jaxlift.attribute, "rule"),
        (jaxlift.integrated_gradients, "steps"),
        (jaxlift.grad_cam, "layer"),
        (jaxlift.guided_grad_cam, "layer"),
        (jaxlift.grad_cam_plus_plus, "layer"),
        (jaxlift.score_cam, "chunk"),
        (jaxlift.conductance, "unit"),
        (jaxlift.gradient_shap, "noise"),
        (jaxlift.occlusion, "window"),
        (jaxlift.mutagenesis, "chunk"),
        (jaxlift.shapley, "samples"),
    ],
)
def test_signature_and_help_have_all_options(method, own):
    parameters = inspect.signature(method).parameters
    assert next(iter(parameters)) == "fun"
    for name in ("target", "pairing", "full", "channel_axis", "reference_batch_size", own):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    for name in parameters:
        assert any(name in line.partition(":")[0] for line in method.__doc__.splitlines() if line.startswith("    "))
    assert "options" not in parameters


def test_scores_that_are_not_finite():
    """Though input and reference are; and nothing is said where these aren't, which has a warning of its own."""
    with pytest.warns(UserWarning, match=r"2 scores are NaN or infinite, though input and reference are finite") as w:
        attr(lambda x: jnp.log(x).sum(1))(X - 1, reference=R + 1)
    assert len(w) == 1
    assert w[0].filename == __file__


def test_what_an_attribution_function_is_shown_as():
    assert repr(attr(target=3)) == "<attribute of model, target=3, rule=Rescale()>"
    with_labels = jaxlift.integrated_gradients(two_outputs, target=jnp.zeros(4, int), steps=8)
    assert repr(with_labels).startswith("<integrated_gradients of two_outputs, target=an array of dtype int")


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], np.array([0, 1, 1, 0])])
def test_labels_may_be_an_argument_of_what_is_compiled(labels):
    scores = jax.jit(attr(two_outputs))(X, reference=R, target=labels)
    np.testing.assert_allclose(scores, attr(two_outputs)(X, reference=R, target=jnp.asarray(labels)), rtol=1e-6)


def test_a_reference_under_lrp():
    lrp = attr(rule="epsilon_lrp")
    np.testing.assert_array_equal(lrp(X, reference=R), lrp(X))
    with pytest.warns(UserWarning, match=r"rules of LRP share the output itself") as w:
        lrp(X, reference=R + 1)
    assert w[0].filename == __file__
