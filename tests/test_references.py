"""References by name, against plain counting."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlift import references

LETTERS = "ACGTN"
# Ordinary, short, one letter, runs with one way out, two letters that go to and fro, a circuit, unknown bases.
SEQUENCES = [
    "ACGATTACAGGCATTAGCACCATGACGT",
    "ACGT",
    "AAAAAAA",
    "A" * 40 + "C" + "G" * 30 + "CT",
    "AC" * 30 + "GT" + "ACAG",
    "ACGTACGGTTACA",
    "ACNNGATNACAGNNNACG",
    "AC",
    "G",
]
shuffled = references.dinucleotide_shuffle


def one_hot(text, dtype=np.float32):
    return np.array([[letter == base for base in "ACGT"] for letter in text], dtype)


def text(x):
    return "".join(LETTERS[row.argmax() if row.any() else 4] for row in np.asarray(x))


def dinucleotides(text):
    return Counter(itertools.pairwise(text))


def all_shuffles(text):
    """Every sequence with these dinucleotides and first letter, by walking all paths."""
    found, pending = set(), [(text[0], dinucleotides(text))]
    while pending:
        path, left = pending.pop()
        if not +left:
            found.add(path)
        pending += [(path + b, left - Counter([(a, b)])) for a, b in +left if a == path[-1]]
    return sorted(found)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_dinucleotides_and_ends_are_kept(sequence):
    for shuffle in map(text, shuffled(one_hot(sequence), jax.random.key(1), 20)):
        assert dinucleotides(shuffle) == dinucleotides(sequence)
        assert (shuffle[0], shuffle[-1]) == (sequence[0], sequence[-1])


# In the second, one tree in 13 has almost no weight; in the third the path returns to where it began.
@pytest.mark.parametrize("sequence", ["ACGACTAACGA", "AAAAACACACGCT", "ACAGATACGA", "ANACNGANC", "AAAACCCAG"])
def test_each_shuffle_is_as_likely(sequence):
    possible, draws = all_shuffles(sequence), 6000
    counts = Counter(map(text, shuffled(one_hot(sequence), jax.random.key(2), draws)))
    assert set(counts) == set(possible)
    expected = draws / len(possible)
    chi_square = sum((counts[each] - expected) ** 2 / expected for each in possible)
    freedom = len(possible) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5  # mean n, variance 2 n


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_letters_are_kept(sequence):
    shuffles = list(map(text, references.mononucleotide_shuffle(one_hot(sequence), jax.random.key(1), 20)))
    assert all(Counter(shuffle) == Counter(sequence) for shuffle in shuffles)
    assert len(set(shuffles)) > 10 or len(set(sequence)) < 3 or len(sequence) < 5


@pytest.mark.parametrize("sequence", ["ACGT", "AACNC", "G", "AAT"])
def test_each_order_is_as_likely(sequence):
    possible, draws = sorted(set(map("".join, itertools.permutations(sequence)))), 6000
    counts = Counter(map(text, references.mononucleotide_shuffle(one_hot(sequence), jax.random.key(2), draws)))
    assert set(counts) == set(possible)
    expected, freedom = draws / len(possible), len(possible) - 1
    chi_square = sum((counts[each] - expected) ** 2 / expected for each in possible)
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5  # mean n, variance 2 n


@pytest.mark.parametrize("shuffled", [shuffled, references.mononucleotide_shuffle])
def test_reproducible_alone_and_in_batches(shuffled):
    batch = jnp.stack([one_hot(s * 5) for s in ("ACGTTGCA", "GATTACAG", "CCAGTNAC")])
    keys = jax.random.split(jax.random.key(3), 3)
    together = jax.jit(jax.vmap(lambda x, key: shuffled(x, key, 4)))(batch, keys)
    for x, key, expected in zip(batch, keys, together, strict=True):
        np.testing.assert_array_equal(shuffled(x, key, 4), expected)
    assert (shuffled(batch[0], keys[1], 4) != together[0]).any()


@pytest.mark.parametrize("shuffled", [shuffled, references.mononucleotide_shuffle])
def test_what_is_not_one_hot_is_nan(shuffled):
    x = jnp.asarray(one_hot("ACGTACGT"))
    for bad in (0.5 * x, x.at[3].set(1), x - 1):
        assert jnp.isnan(jax.jit(lambda x: shuffled(x, jax.random.key(0), 2))(bad)).all()
        with pytest.raises(ValueError, match="rows that are one-hot, or 0"):
            shuffled(bad, jax.random.key(0), 2)


@pytest.mark.parametrize("shuffled", [shuffled, references.mononucleotide_shuffle])
def test_a_sequence_without_a_base_has_nothing_to_shuffle(shuffled):
    nothing = jnp.zeros((6, 4))
    with pytest.raises(ValueError, match="no base at all"):
        shuffled(nothing, jax.random.key(1), 20)
    assert (jax.jit(shuffled, static_argnums=2)(nothing, jax.random.key(1), 20) == 0).all()


@pytest.mark.parametrize("kind", ["dinucleotide", "mononucleotide"])
def test_bad_arguments_of_shuffles(kind):
    shuffle = getattr(references, f"{kind}_shuffle")
    with pytest.raises(ValueError, match=rf"a {kind} .* one sequence \(L, 4\), got shape \(2, 5, 4\): jax\.vmap"):
        shuffle(jnp.zeros((2, 5, 4)), jax.random.key(0))
    with pytest.raises(TypeError, match=rf"a {kind} .* got int32"):
        shuffle(jnp.zeros((5, 4), int), jax.random.key(0))
    with pytest.raises(TypeError, match=rf"a {kind} .* got the text 'ACGT'"):
        shuffle("ACGT", jax.random.key(0))
    with pytest.raises(ValueError, match="count=0"):
        shuffle(jnp.eye(4), jax.random.key(0), 0)


def test_uniform():
    np.testing.assert_array_equal(references.uniform(jnp.ones((3, 5, 4))), np.full((5, 4), 0.25))
    np.testing.assert_array_equal(references.uniform(jnp.ones((3, 4, 5)), channel_axis=-2), np.full((4, 5), 0.25))
    with pytest.raises(TypeError, match="got int32"):
        references.uniform(jnp.ones((3, 5, 4), int))
    with pytest.raises(ValueError, match="channel_axis=2"):
        references.uniform(jnp.ones((3, 5, 4)), channel_axis=2)


@pytest.mark.usefixtures("x64")
def test_zeros_mean_and_frequencies():
    texts = ["ACGTN", "AACCG", "NNTTA"]
    x = np.stack([one_hot(t, np.float64) for t in texts])
    np.testing.assert_array_equal(references.zeros(x), np.zeros((5, 4)))
    np.testing.assert_allclose(references.mean(x), sum(x) / 3, rtol=1e-15)
    letters = "".join(texts).replace("N", "")
    expected = [letters.count(base) / len(letters) for base in "ACGT"]
    np.testing.assert_allclose(references.frequencies(x), [expected] * 5, rtol=1e-14)


def test_bad_examples():
    with pytest.raises(ValueError, match=r"at least one, got shape \(0, 3\)"):
        references.mean(jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"axis of channels, got shape \(3,\)"):
        references.frequencies(jnp.ones(3))
    with pytest.raises(ValueError, match=r"one-hot along axis 0"):
        references.frequencies(-jnp.ones((2, 3)))


def test_frequencies_along_another_axis():
    x = np.stack([one_hot(t, np.float32) for t in ("ACGTNA", "AACCGA", "NNTTAA")])
    expected = references.frequencies(x).T
    for axis in (0, -2):
        np.testing.assert_array_equal(references.frequencies(x.transpose(0, 2, 1), channel_axis=axis), expected)
    with pytest.raises(
        ValueError, match=r"one-hot along axis 1 .* shape is \(4, 6\), .* along axis 0: say channel_axis=0"
    ):
        references.frequencies(x.transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"\(4, 6\) look one-hot along axis 0: say channel_axis=0"):
        jax.jit(references.frequencies)(x.transpose(0, 2, 1))
