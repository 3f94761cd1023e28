"""Explain where a trained network sees a splice site: how much each base contributes.

The network is the first of SpliceAI's five, dilated convolutions with 10,000 bases of context, as a Keras model on JAX;
it is used as it is. The sequence is random but for an exon in its middle, with the consensus of an acceptor before it
and of a donor after it. It is compared with shuffled copies of itself.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from keras_models import log_probabilities_of
from matplotlib.figure import Figure

import jaxlift

CONTEXT = 10_000  # bases that the network sees around each position, half on each side
BRANCH_AND_ACCEPTOR, DONOR = "TACTAACTTTTCTTTCTCTTTTCTTCTCCTTGCAG", "CAGGTAAGTAT"
DONOR_CLASS = 2  # of none, acceptor, donor


def make_sequence(rng: np.random.Generator, exon: int = 120) -> tuple[str, int]:
    """A sequence, and the place of the last base of its exon."""

    def random_bases(n: int) -> str:
        return "".join(rng.choice(list("ACGT"), n))

    left = random_bases(CONTEXT // 2 - exon - len(BRANCH_AND_ACCEPTOR))
    before = left + BRANCH_AND_ACCEPTOR + random_bases(exon) + DONOR[:3]
    return before + DONOR[3:] + random_bases(CONTEXT // 2), len(before) - 1


def one_hot(sequence: str) -> np.ndarray:
    """`(length, 4)`, in the order ACGT."""
    return np.eye(4, dtype=np.float32)[["ACGT".index(base) for base in sequence]]


def picture(bases: str, start: int, scores: dict[str, np.ndarray]) -> Figure:
    """The contributions of the bases around the site."""
    colours = {"A": "#2e8b57", "C": "#2c6fbb", "G": "#e69f00", "T": "#c0392b"}
    figure, axes = plt.subplots(
        len(scores), 1, figsize=(10, 1.9 * len(scores)), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, values) in zip(axes, scores.items(), strict=True):
        axis.bar(range(len(bases)), values, width=0.8, color=[colours[base] for base in bases])
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.set_ylabel(f"{name}\ncontribution", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.005)
    axes[-1].set_xticks(range(len(bases)), bases, fontsize=7)
    axes[-1].set_xlabel(f"bases, the first {-start} before the last of the exon", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/splice.png"), help="where the picture goes")
    parser.add_argument("--references", type=int, default=3, help="how many shuffled copies to compare with")
    options = parser.parse_args()

    log_probabilities = log_probabilities_of("spliceai", "1.3.1", "spliceai/models/spliceai1.h5")
    rng = np.random.default_rng(0)
    sequence, site = make_sequence(rng)
    x = one_hot(sequence)
    position = site - CONTEXT // 2  # among the outputs, which the context is cut from
    references = np.stack([rng.permutation(x) for _ in range(options.references)])
    predicted = np.exp(np.asarray(jax.jit(log_probabilities)(jnp.asarray(x[None]))))[0, position]
    print(f"probability of a donor at the exon's last base: {predicted[DONOR_CLASS]:.3f}")

    window = slice(site - 45, site + 25)
    scores, worst = {}, 0.0
    for rule, name in [("rescale", "Rescale"), ("revealcancel", "RevealCancel")]:
        attr = jaxlift.attribute(log_probabilities, target=(position, DONOR_CLASS), rule=rule, average=False, full=True)
        contributions, delta, *_ = jax.device_get(
            jax.jit(attr)(jnp.asarray(x[None]), reference=jnp.asarray(references))
        )
        worst = float(np.maximum(worst, (np.abs(delta) / np.abs(contributions).sum((2, 3))).max()))
        scores[name] = contributions.mean((0, 1)).sum(-1)[window]
        print(f"{name:12} contributions sum to {contributions.mean((0, 1)).sum():+.3f}")
    print(f"largest summation-to-delta error, relative to the sum of absolute contributions: {worst:.1e}")

    options.output.parent.mkdir(parents=True, exist_ok=True)
    picture(sequence[window], -45, scores).savefig(options.output, dpi=200)
    print(f"picture: {options.output}")
    if not worst <= 1e-4:  # NaN is an error too
        raise SystemExit("the contributions don't sum to the difference of the outputs")


if __name__ == "__main__":
    main()
