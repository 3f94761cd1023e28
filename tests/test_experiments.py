"""In-silico experiments, against changing sequences one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift
from jaxlift import references
from jaxlift.genomics import _reuse
from jaxlift.genomics.experiments import ablate, marginalize, saturation

RNG = np.random.default_rng(0)
LENGTH = 36


def weights(*shape):
    return RNG.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


FIRST, SECOND, STEM, SHORTCUT = weights(5, 4, 6), weights(3, 6, 6), weights(4, 6, 6), weights(1, 6, 6)
DEPTHWISE, PLANE, HEAD, DENSE, OVER = (
    weights(5, 1, 8),
    weights(1, 5, 4, 6),
    weights(6, 3),
    weights(108, 7),
    weights(36, 5),
)
PLACES = RNG.normal(size=(1, LENGTH, 6))


def conv(x, kernel, stride=1, padding="SAME", **how):
    return lax.conv_general_dilated(x, kernel, (stride,), padding, dimension_numbers=("NWC", "WIO", "NWC"), **how)


def pool(x, size, stride, padding="VALID", combine=lax.max, **how):
    start = -jnp.inf if combine is lax.max else 0.0
    return lax.reduce_window(x, start, combine, (1, size, 1), (1, stride, 1), padding, **how)


def residual(x):
    h = jax.nn.relu(conv(x, FIRST))
    for dilation in (1, 2):
        h = h + jax.nn.relu(conv(h, SECOND, rhs_dilation=(dilation,)))
    return h.mean(1) @ HEAD


def flattened(x):
    h = pool(jax.nn.gelu(conv(x, FIRST)), 2, 2)
    return jax.nn.relu(h.reshape(len(x), -1) @ DENSE)


def strided_shortcut(x):
    h = conv(x, FIRST)
    return jax.nn.relu(conv(h, STEM, 2) + conv(h, SHORTCUT, 2)).max(1)


def both_strands(x):
    def one(x):
        return pool(jnp.tanh(conv(x, FIRST)), 3, 3).max(1) @ HEAD

    return (one(x) + one(x[:, ::-1, ::-1])) / 2


def normalised(x):
    h = conv(x, FIRST)
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-3)
    return jnp.where(h > 0, h, jnp.expm1(h)).max(1)


def joined(x):
    h = conv(x, FIRST)
    return jnp.concatenate([h, conv(x, FIRST[:3], padding=[(0, 2)]), jnp.repeat(PLACES, len(x), 0)], -1).max((1, 2))[
        :, None
    ]


def attention(x):
    h = conv(x, FIRST)
    return (jax.nn.softmax(h @ h.mT) @ h).mean(1)


# What is evaluated on windows, up to what needs all positions.
WINDOWED = {
    "residual": residual,
    "flattened": flattened,
    "strided shortcut": strided_shortcut,
    "both strands": both_strands,
    "normalised": normalised,
    "joined": joined,
    "strides that don't divide": lambda x: jnp.tanh(conv(conv(x, FIRST, 3), STEM, 2, [(1, 2)])).sum(1),
    "crops": lambda x: conv(x, FIRST, padding="VALID")[:, 4:-5] @ HEAD,
    "every third": lambda x: jnp.tanh(conv(x, FIRST)[:, 3:-5:3] @ HEAD).max(1),
    "less than no padding": lambda x: conv(conv(x, FIRST), SECOND, padding=[(-3, -2)]).sum(1),
    "a value for each place": lambda x: (conv(x, FIRST) * PLACES).sum(1),
    "overlapping means": lambda x: pool(conv(x, FIRST), 4, 3, "SAME", lax.add).reshape(len(x), -1),
    "channels first": lambda x: jnp.einsum("nlc,cd->ndl", conv(x, FIRST), HEAD).reshape(len(x), -1) @ DENSE,
    "padding": lambda x: jnp.pad(conv(x, FIRST), ((0, 0), (3, 4), (0, 0)), constant_values=0.5).max(1),
    "depthwise": lambda x: pool(jax.nn.softplus(conv(x, DEPTHWISE, feature_group_count=4)), 5, 2, "SAME").max(1),
    "dilated pooling": lambda x: pool(conv(x, FIRST), 3, 2, "SAME", window_dilation=(1, 3, 1)).sum(1),
    "a dense layer at each position": lambda x: jnp.einsum("ck,nlc->nlk", HEAD, conv(x, FIRST)).max(1),
    "positions to channels": lambda x: jnp.einsum("lk,nlc->nkc", OVER, conv(x, FIRST)),
    "the sequence itself": lambda x: x[:, 3:5],
    "a constant": lambda x: jnp.ones((len(x), 2)),
    "an image of one row": lambda x: lax.conv_general_dilated(
        x[:, None], PLANE, (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).max(2)[:, 0],
    "a checkpoint": lambda x: jax.checkpoint(lambda h: jnp.tanh(conv(h, SECOND)))(conv(x, FIRST)).sum(1),
}
# What is computed whole from somewhere on.
WHOLE = {
    "attention": attention,
    "a recurrence": lambda x: lax.scan(
        lambda c, h: (jnp.tanh(c + h), None), jnp.zeros_like(x, shape=(len(x), 6)), conv(x, FIRST).swapaxes(0, 1)
    )[0],
    "a softmax over positions": lambda x: jax.nn.softmax(conv(x, FIRST), 1).var(1),
    "windows of the whole length": lambda x: conv(conv(x, FIRST), SECOND, rhs_dilation=(16,)).max(1),
    "transposed convolution": lambda x: lax.conv_general_dilated(
        x, FIRST, (1,), [(2, 3)], lhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC")
    ).max(1),
    "cumulative": lambda x: jnp.cumsum(conv(x, FIRST), 1).max(1),
    "flattened, then more": lambda x: jnp.sort(conv(x, FIRST).reshape(len(x), -1))[:, ::20],
}
MODELS = WINDOWED | WHOLE


def sequences(n, length=LENGTH, seed=1):
    return np.eye(4)[np.random.default_rng(seed).integers(0, 4, (n, length))]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(  # each third at once, the others among the long tests
    "name", [pytest.param(name, marks=pytest.mark.slow if i % 3 else ()) for i, name in enumerate(MODELS)]
)
@pytest.mark.sample(5)
def test_saturation_is_mutagenesis(name):
    model, x = MODELS[name], sequences(2)
    x[0, [0, 7]] = 0  # N, and no letter is there then
    size = model(x)[0].size
    target = np.random.default_rng(2).normal(size=model(x).shape[1:])
    expected = jax.jit(jaxlift.mutagenesis(model, target=target, chunk=4 * LENGTH))(x)
    found = saturation(model, x, target=target, chunk=50)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * size)
    assert (found[x == 1] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_which_programs_are_evaluated_on_windows(name, monkeypatch):
    """Those windows end where all positions meet."""
    became_whole, evaluated = [], _reuse._Evaluation.evaluated

    def watched(self, eqn, operands):
        outputs = evaluated(self, eqn, operands)
        if any(isinstance(each, _reuse.Window) for each in operands):
            became_whole.extend(eqn.primitive.name for each in outputs if isinstance(each, _reuse.Whole))
        return outputs

    monkeypatch.setattr(_reuse._Evaluation, "evaluated", watched)
    model, x = MODELS[name], sequences(1)[0]
    changed = _reuse.changed_outputs(lambda x: model(x[None]), x, 0)
    jax.make_jaxpr(changed)(x, (0, x[:1]))
    if name in WINDOWED:
        assert set(became_whole) <= {"reduce_sum", "reduce_max", "dot_general", "reshape"}
    else:
        assert became_whole


def random_layers(rng):
    """A length, and layers that keep the axes of `(1, L, C)`, of random sizes, strides and paddings."""
    first = length = int(rng.integers(8, 60))
    channels, layers = 4, []
    kinds = ["conv", "conv", "pool", "crop", "pad", "turn", "residual", "join", "norm"]
    for kind in rng.choice(kinds, rng.integers(2, 7)):
        size, step, dilation = int(rng.integers(1, 6)), int(rng.choice([1, 1, 2, 3])), int(rng.choice([1, 1, 2, 4]))
        low, high = map(int, rng.integers(-2, 5, 2))
        left = (length + low + high - (size - 1) * dilation - 1) // step + 1
        kernel = rng.normal(size=(size, channels, 5)) / size
        start, stop = sorted(map(int, rng.choice(length, 2))) if length > 1 else (0, 0)
        if kind == "conv" and min(left, length + low + high) > 0:
            layers.append(lambda h, k=kernel, s=step, p=(low, high), d=dilation: conv(h, k, s, [p], rhs_dilation=(d,)))
            length, channels = left, 5
        elif kind == "pool" and length >= size:
            layers.append(lambda h, n=size, s=step: pool(h, n, s))
            length = (length - size) // step + 1
        elif kind == "crop":
            layers.append(lambda h, where=slice(start, stop + 1, step): h[:, where])
            length = (stop - start) // step + 1
        elif kind == "pad" and length + min(low, 0) + min(high, 0) > 0:
            layers.append(lambda h, ends=(low, high, 0): lax.pad(h, np.float64(0.7), [(0, 0, 0), ends, (0, 0, 0)]))
            length += low + high
        elif kind == "turn":
            layers.append(lambda h: h[:, ::-1, ::-1])
        elif kind == "residual":
            kernel = rng.normal(size=(3, channels, channels)) / channels
            layers.append(lambda h, k=kernel, d=dilation: h + jnp.tanh(conv(h, k, rhs_dilation=(d,))))
        elif kind == "join":
            layers.append(lambda h, k=kernel[:3]: jnp.concatenate([h, conv(h, k)], -1))
            channels += 5
        elif kind == "norm":
            layers.append(lambda h: jnp.where(h > 0.1, h, h.mean(-1, keepdims=True)))
    return first, layers


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(10))
def test_random_programs_on_windows(seed):
    rng = np.random.default_rng(seed)
    length, layers = random_layers(rng)
    end = [lambda h: h.sum(1), lambda h: h.max((1, 2)), lambda h: h, lambda h: h.reshape(-1)[::3]][seed % 4]

    def program(x):
        h = x[None]
        for layer in layers:
            h = layer(h)
        return end(h)

    x, new = sequences(2, length, seed)
    changed = _reuse.changed_outputs(program, x, 0)
    at, new = jnp.arange(length), jnp.asarray(new[:, None])
    found = jax.jit(jax.vmap(lambda *change: changed(x, change)))(at, new)
    expected = jax.jit(jax.vmap(lambda at, new: program(jnp.asarray(x).at[at].set(new[0]))))(at, new)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * (1 + np.abs(expected).max()))


def test_saturation_spares_computation():
    """Of 400 positions, a window of at most 25 is computed."""
    x = jnp.asarray(sequences(1, 400), jnp.float32)
    one = lambda x: residual(x[None]).sum()  # noqa: E731
    changed = _reuse.changed_outputs(one, x[0], 0)

    def flops(fun):
        return jax.jit(fun).lower(x[0], (jnp.arange(64), x[0, :64, None])).compile().cost_analysis()["flops"]

    every = flops(lambda x, change: jax.vmap(lambda at, new: one(x.at[at].set(new[0])))(*change))
    windows = flops(lambda x, change: jax.vmap(lambda *change: changed(x, change))(*change))
    assert windows < every / 8


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.slow
def test_saturation_of_short_sequences(length):
    x = sequences(3, length).astype(np.float32)
    model = lambda x: conv(jnp.tanh(conv(x, FIRST.astype(np.float32))), SECOND.astype(np.float32)).sum((1, 2))  # noqa: E731
    expected = jaxlift.mutagenesis(model)(x)
    np.testing.assert_allclose(saturation(model, x, batch_size=2), expected, atol=1e-5)
    first = saturation(lambda x: model(x.mT), x.swapaxes(1, 2), channel_axis=-2, chunk=3, batch_size=None)
    np.testing.assert_allclose(first, jnp.asarray(expected).mT, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_saturation_takes_targets_as_others_do():
    x = sequences(2, 8)
    small = lambda x: jnp.tanh(conv(x, FIRST)).mean(1)  # noqa: E731
    for target in (1, np.array([0, 2]), "all", lambda y: y[:, 0] - y[:, 1]):
        expected = jaxlift.mutagenesis(small, target=target)(x)
        np.testing.assert_allclose(saturation(small, x, target=target), expected, atol=1e-13)
    traced = jax.jit(lambda x: saturation(small, x, target=1))(x)
    np.testing.assert_allclose(traced, saturation(small, x, target=1), atol=1e-13)


def test_bad_arguments_of_saturation():
    with pytest.raises(ValueError, match=r"saturation takes sequences \(N, L, C\), .* \(2, 3, 4\): jaxlift"):
        saturation(lambda x: x.sum((1, 2, 3)), np.eye(4)[np.zeros((1, 2, 3), int)])
    with pytest.raises(ValueError, match="saturation needs examples that are one-hot along axis 1"):
        saturation(lambda x: x.sum((1, 2)), np.full((1, 3, 4), 2.0))
    with pytest.raises(ValueError, match="chunk=0"):
        saturation(lambda x: x.sum((1, 2)), np.eye(4)[None], chunk=0)


def model(x):
    """Two heads, which tell positions and letters apart."""
    h = jnp.tanh(jnp.einsum("nlc,lc->nl", x, jnp.asarray(PLACES[0, : x.shape[1], :4], x.dtype)))
    return {"profile": h, "counts": h.sum(1, keepdims=True)}


def inserted(x, motif, at):
    """A motif of letters in a copy of one sequence."""
    x = np.array(x)
    for i, letter in enumerate(motif):
        if letter != "N":
            x[at + i] = [letter == base for base in "ACGT"]
    return x


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch_size", [None, 2])
def test_marginalize_puts_motifs_in(batch_size):
    x = sequences(3, 12)
    result = marginalize(model, "tgNCa", x, at=[0, 7, 3], batch_size=batch_size)
    for n in range(3):
        np.testing.assert_allclose(result.before["profile"][n], model(x[n][None])["profile"][0], rtol=1e-14)
        for p, at in enumerate((0, 7, 3)):
            expected = model(inserted(x[n], "TGNCA", at)[None])
            for head in ("profile", "counts"):
                np.testing.assert_allclose(result.after[head][n, p], expected[head][0], rtol=1e-14)
    for head in ("profile", "counts"):
        expected = result.after[head] - result.before[head][:, None]
        np.testing.assert_array_equal(result.difference[head], expected)


@pytest.mark.usefixtures("x64")
def test_marginalize_on_the_other_strand_in_the_middle_and_channels_first():
    x = sequences(2, 11)
    expected = np.array([model(inserted(each, "CNAAG", 3)[None])["counts"][0, 0] for each in x])
    count = lambda y: y["counts"][:, 0]  # noqa: E731
    found = marginalize(model, "CTTNG", x, strand="-", target=count)
    np.testing.assert_allclose(found.after, expected, rtol=1e-14)
    rows = np.array([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
    first = marginalize(lambda x: model(x.mT), rows, x.swapaxes(1, 2), at=3, target=count, channel_axis=-2)
    np.testing.assert_allclose(first.after, expected, rtol=1e-14)


@pytest.mark.usefixtures("x64")
def test_marginalize_takes_targets():
    x = sequences(2, 6)
    profile = lambda x: model(x)["profile"]  # noqa: E731
    whole, weights = marginalize(profile, "AC", x).after, np.arange(6.0)
    np.testing.assert_allclose(marginalize(profile, "AC", x, target=2).after, whole[:, 2], rtol=1e-14)
    np.testing.assert_allclose(marginalize(profile, "AC", x, target=weights).after, whole @ weights, rtol=1e-13)
    np.testing.assert_allclose(marginalize(profile, "AC", x, target="all").after, whole, rtol=1e-14)
    with pytest.raises(ValueError, match="target=2 picks from one output, but the model has several"):
        marginalize(model, "AC", x, target=2)
    with pytest.raises(TypeError, match="one target is taken for all sequences"):
        marginalize(profile, "AC", x, target=np.array([0, 1]))


def test_marginalize_draws_from_distributions():
    x = sequences(4000, 5).astype(np.float32)
    matrix = np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], [0, 0.5, 0.5, 0]])
    found = marginalize(lambda x: x, matrix, x, at=1, key=jax.random.key(0)).after
    np.testing.assert_array_equal(found[:, [0, 2, 4]], x[:, [0, 2, 4]])
    np.testing.assert_allclose(found[:, 1].mean(0), matrix[0], atol=0.03)
    np.testing.assert_allclose(found[:, 3].mean(0), matrix[2], atol=0.03)
    letters = marginalize(lambda x: x, "NYN", x, at=1, key=jax.random.key(0)).after
    np.testing.assert_allclose(letters[:, 2].mean(0), [0, 0.5, 0, 0.5], atol=0.03)
    again = marginalize(lambda x: x, matrix, x, at=1, key=jax.random.key(0)).after
    np.testing.assert_array_equal(again, found)
    assert (marginalize(lambda x: x, matrix, x, at=1, key=jax.random.key(1)).after != found).any()


def test_bad_arguments_of_marginalize():
    x = sequences(2, 6)
    with pytest.raises(ValueError, match=r"got the letters \['!', 'E'\]"):
        marginalize(model, "AE!", x)
    with pytest.raises(ValueError, match=r"a motif has letters .* got none"):
        marginalize(model, "", x)
    with pytest.raises(ValueError, match=r"5 letters at 2 doesn't fit into sequences of 6: .* stand at 0 to 1"):
        marginalize(model, "ACGTA", x, at=2)
    with pytest.raises(ValueError, match=r"at=1.5 must be an int"):
        marginalize(model, "ACGTA", x, at=1.5)
    with pytest.raises(ValueError, match=r"give key=jax\.random\.key\(0\)"):
        marginalize(model, "ARA", x)
    with pytest.raises(ValueError, match=r"their sums are \[4\.0, 4\.0\]"):
        marginalize(model, np.ones((2, 4)), x)
    with pytest.raises(ValueError, match=r"\(W, 4\), letters last, got shape \(4, 3\)"):
        marginalize(model, np.ones((4, 3)), x)
    with pytest.raises(ValueError, match=r"takes sequences \(N, L, 4\), got shape \(6, 4\)"):
        marginalize(model, "A", x[0])
    with pytest.raises(ValueError, match="one-hot, or 0 where a letter isn't known"):
        marginalize(model, "A", np.full((1, 6, 4), 0.25))
    with pytest.raises(ValueError, match="strand='x'"):
        marginalize(model, "A", x, strand="x")
    with pytest.raises(TypeError, match="a model is a function"):
        marginalize(3, "A", x)
    with pytest.raises(ValueError, match=r"must be batched, .* an output of shape \(\)"):
        marginalize(lambda x: x.sum(), "A", x)


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("shuffle", [references.dinucleotide_shuffle, references.mononucleotide_shuffle])
@pytest.mark.slow
def test_ablate_shuffles_spans_alone(shuffle, batch_size):
    x = sequences(3, 16).astype(np.float32)
    spans = np.array([[[0, 5], [2, 12]], [[11, 16], [3, 4]], [[6, 16], [0, 16]]])
    how = {"key": jax.random.key(0), "shuffles": 4, "shuffle": shuffle, "batch_size": batch_size}
    found = ablate(lambda x: x, x, spans, **how)
    np.testing.assert_array_equal(found.before, x)
    assert found.after.shape == (3, 2, 4, 16, 4)
    changes = 0
    for n in range(3):
        for s in range(2):
            start, end = spans[n, s]
            for k in range(4):
                after = np.array(found.after[n, s, k])
                np.testing.assert_array_equal(after[:start], x[n, :start])
                np.testing.assert_array_equal(after[end:], x[n, end:])
                np.testing.assert_array_equal(after[start:end].sum(0), x[n, start:end].sum(0))
                changes += (after != x[n]).any()
                if shuffle is references.dinucleotide_shuffle:
                    assert (pairs(after[start:end]) == pairs(x[n, start:end])).all()
    assert changes > 8
    assert (found.after[:, :, 0] != found.after[:, :, 1]).any()


def pairs(x):
    """How often each letter follows each other letter."""
    return x[:-1].T @ x[1:]


@pytest.mark.slow
def test_ablate_takes_the_same_spans_for_all():
    x = sequences(2, 10).astype(np.float32)
    how = {"key": jax.random.key(3), "shuffles": 3}
    several = ablate(model, x, [(1, 9), (0, 6)], **how)
    own = ablate(model, x, np.array([[(1, 9), (0, 6)]] * 2), **how)
    assert several.after["profile"].shape == (2, 2, 3, 10)
    np.testing.assert_array_equal(several.after["profile"], own.after["profile"])
    first = ablate(lambda x: model(x.mT), x.swapaxes(1, 2), [(1, 9), (0, 6)], channel_axis=0, **how)
    np.testing.assert_allclose(first.after["counts"], own.after["counts"], rtol=1e-6)
    expected = several.after["counts"] - several.before["counts"][:, None, None]
    np.testing.assert_array_equal(several.difference["counts"], expected)


def test_bad_arguments_of_ablate():
    x, key = sequences(2, 6), jax.random.key(0)
    for spans in ([(0, 7)], [(3, 3)], [(-1, 2)], [(0, 2), (5, 4)]):
        with pytest.raises(ValueError, match="0 <= start < end <= 6"):
            ablate(model, x, spans, key=key)
    for spans in ([], [3, 4], np.zeros((3, 1, 2), int)):
        with pytest.raises(ValueError, match=r"spans must be pairs .* \(2, S, 2\) for each"):
            ablate(model, x, spans, key=key)
    with pytest.raises(ValueError, match="spans must be whole numbers"):
        ablate(model, x, [(0.0, 2.0)], key=key)
    with pytest.raises(TypeError, match="expected a PRNG key"):
        ablate(model, x, [(0, 2)], key=0)
    with pytest.raises(ValueError, match="shuffles=0"):
        ablate(model, x, [(0, 2)], key=key, shuffles=0)
