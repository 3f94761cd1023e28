"""Explain a network of AlphaGenome's shape (alphagenome_network.py): every head, complete to its precision.

It is trained for a minute on simulated DNA, with instances of two motifs, GATA1 and TAL1 (motifs.py). There are
three things to predict: at each base, how often a factor is found around it; in each bin of 128 bases, how many
instances there are of each; and for each pair of bins, contact, if one has GATA1 and the other TAL1.

Then one prediction of each head is explained, against the frequencies of the bases. Contributions sum to the difference
that the network computes, as far as its precision goes: in bfloat16, which has 8 binary digits, to some 2^-8 of the sum
of their magnitudes; and the same network computed in float32, or in float64, to what these have.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from motifs import BACKGROUND, MOTIFS

import jaxlift
from jaxlift import plot

try:
    import optax
    from alphagenome_network import Network, Sizes, in_precision
    from flax import nnx
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[examples]'") from error

LENGTH, BIN, MOST = 1024, 128, 6  # bases, bases of a bin, and instances of a motif at most
ROUNDINGS = 4  # of the sum of magnitudes, that sums may miss
WIDTH = 6.0  # of the peaks around instances, in bases
DTYPES = {"bfloat16": jnp.float32, "float32": jnp.float32, "float64": jnp.float64}  # computation and parameters


def simulate(rng: np.random.Generator, count: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Sequences of bases by number `(count, 1024)`, what to predict, and where instances begin `(count, 1024, 2)`."""
    sequences = rng.choice(4, size=(count, LENGTH), p=BACKGROUND)
    starts = np.zeros((count, LENGTH, len(MOTIFS)), bool)
    for sequence, start in zip(sequences, starts, strict=True):
        wanted = rng.permutation(np.repeat(range(len(MOTIFS)), rng.integers(0, MOST + 1, len(MOTIFS))))
        for slot, motif in zip(rng.choice(LENGTH // 32, len(wanted), replace=False), wanted, strict=True):
            probabilities = list(MOTIFS.values())[motif]
            first = 32 * slot + rng.integers(32 - len(probabilities))
            chosen = (rng.random((len(probabilities), 1)) > probabilities.cumsum(1)).sum(1).clip(max=3)
            sequence[first : first + len(probabilities)] = chosen
            start[first, motif] = True
    halves = [len(motif) // 2 for motif in MOTIFS.values()]
    middles = np.stack([np.roll(starts[..., m], half, axis=1) for m, half in enumerate(halves)], -1)
    distance = np.arange(-24, 25)
    peak = np.exp(-((distance / WIDTH) ** 2) / 2)
    bases = sum(height * np.roll(middles, shift, axis=1) for height, shift in zip(peak, distance, strict=True))
    bins = middles.reshape(count, -1, BIN, len(MOTIFS)).sum(2)
    gata1, tal1 = (bins > 0).transpose(2, 0, 1)
    one_way = gata1[:, :, None] & tal1[:, None]
    contacts = one_way | one_way.swapaxes(1, 2)
    wanted = {"bases": bases, "bins": bins, "contacts": contacts}
    return sequences, {head: np.asarray(numbers, np.float32) for head, numbers in wanted.items()}, starts


def loss_of(predicted: dict[str, jax.Array], wanted: dict[str, jax.Array]) -> jax.Array:
    """Poisson's, of each head."""
    losses = {head: (p - wanted[head] * jnp.log(p + 1e-6)).mean() for head, p in predicted.items()}
    return 20 * losses["bases"] + losses["bins"] + losses["contacts"]


def train(steps: int, size: int = 16) -> Network:
    """A network that has seen new sequences in each step, in float32, which CPUs are quicker at."""
    model = Network(Sizes(), nnx.Rngs(0), jnp.float32)
    optimizer = nnx.Optimizer(
        model, optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 10, steps)), wrt=nnx.Param
    )

    @nnx.jit
    def step(model: Network, optimizer: nnx.Optimizer, x: jax.Array, wanted: dict[str, jax.Array]) -> jax.Array:
        value, gradient = nnx.value_and_grad(lambda model: loss_of(model(jax.nn.one_hot(x, 4)), wanted))(model)
        optimizer.update(model, gradient)
        return value

    rng, start = np.random.default_rng(0), time.perf_counter()
    for number in range(steps):
        sequences, wanted, _ = simulate(rng, size)
        loss = step(model, optimizer, jnp.asarray(sequences), jax.tree.map(jnp.asarray, wanted))
        if number % 100 == 99:
            print(f"step {number + 1}: loss {float(loss):.3f}, {time.perf_counter() - start:.0f} s")
    model.eval()
    return model


def explain(
    numbers: Callable[[Network, jax.Array], jax.Array],
    model: Network,
    precision: str,
    rule: str,
    x: np.ndarray,
    reference: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Explain several numbers that are made of a network's outputs, in a precision of `DTYPES`.

    Args:
        numbers: `(network, (N, L, 4)) -> (N, K)`.

    Returns:
        Contributions `(K, L, 4)` to each; and what is missing from their sums, in roundings of the sum of their
        magnitudes. They should sum to the difference between what the network itself gives for `x` and `reference`.
    """
    with jax.enable_x64(precision == "float64"):
        dtype = DTYPES[precision]
        network = in_precision(model, jnp.dtype(precision), dtype)
        both = jnp.asarray(np.stack([x, reference]), dtype)
        output, output_reference = jax.jit(lambda both: numbers(network, both))(both)
        attr = jax.jit(jaxlift.attribute(lambda x: numbers(network, x), rule=rule, target="all"))
        [scores] = attr(both[:1], reference=both[1])
        scores, difference = np.asarray(scores, np.float64), np.asarray(output - output_reference, np.float64)
    missing = np.abs(scores.sum((1, 2)) - difference)
    return scores, missing / np.abs(scores).sum((1, 2)) / float(jnp.finfo(precision).eps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/alphagenome.png"), help="where the picture goes")
    parser.add_argument("--steps", type=int, default=700, help="of training, with 16 new sequences each")
    options = parser.parse_args()

    model = train(options.steps)
    sequences, wanted, starts = simulate(np.random.default_rng(1), 256)
    predicted = jax.device_get(nnx.jit(lambda model, x: model(x))(model, jax.nn.one_hot(sequences, 4)))
    for head, truth in wanted.items():
        print(f"{head:9} correlation with the truth: {np.corrcoef(predicted[head].ravel(), truth.ravel())[0, 1]:.3f}")

    # Of the sequences with few instances, the one in which a contact of different bins is predicted best. What is
    # explained is the track of GATA1 at an instance that makes the contact, the same in its bin, and the contact.
    few = starts.sum((1, 2)) <= 4
    maps = wanted["contacts"] * predicted["contacts"] * few[:, None, None] * (1 - np.eye(LENGTH // BIN))
    chosen, *bins = np.unravel_index(maps.argmax(), maps.shape)
    spans = [
        (start, start + len(motif), name)
        for (name, motif), of_motif in zip(MOTIFS.items(), starts[chosen].T, strict=True)
        for start in np.flatnonzero(of_motif).tolist()
    ]
    base = next(a + 5 for a, _, name in spans if name == "GATA1" and a // BIN in bins)

    def numbers(network: Network, x: jax.Array) -> jax.Array:
        tracks = network(x)
        of_gata1 = tracks["bases"][:, base, 0], tracks["bins"][:, base // BIN, 0]
        return jnp.log(jnp.stack([*of_gata1, tracks["contacts"][:, bins[0], bins[1]]], 1))

    x, reference = np.eye(4)[sequences[chosen]], np.broadcast_to(BACKGROUND, (LENGTH, 4))
    print("missing from the sums, in roundings of the sum of magnitudes:    bases    bins  contacts")
    worst, scores = 0.0, {}
    for precision, rule in [*((precision, "rescale") for precision in DTYPES), ("bfloat16", "revealcancel")]:
        scores[precision, rule], errors = explain(numbers, model, precision, rule, x, reference)
        print(f"{precision:9} {rule:52}" + "".join(f"{error:9.3f}" for error in errors))
        worst = max(worst, *errors) if np.isfinite(errors).all() else np.inf

    options.output.parent.mkdir(parents=True, exist_ok=True)
    heads = f"GATA1 at\nbase {base}", f"GATA1 in\nbin {base // BIN}", f"contact of\nbins {bins[0]}, {bins[1]}"
    rows = {head: plot.observed(s, x) for head, s in zip(heads, scores["bfloat16", "rescale"], strict=True)}
    title = f"Contributions to the logarithms of what three heads predict (bins are of {BIN} bases)"
    plot.tracks(rows, spans=spans, windows=3, title=title, shared=False).savefig(options.output, dpi=150)
    print(f"picture: {options.output}")
    if worst > ROUNDINGS:
        raise SystemExit("the contributions don't sum to the difference of the outputs")


if __name__ == "__main__":
    main()
