"""Explain where a trained network sees a gene's splice sites, and how a known variant makes a new one.

The network is SpliceAI: five dilated residual convolutional networks with 10,000 bases of context, Keras models on JAX,
used as they are. The gene is that of human beta globin, HBB, on chromosome 11. What is explained is the log-odds of an
acceptor or of a donor, averaged over the five; the reference is no bases at all, zeros, which is what SpliceAI itself
puts outside of a gene. The variant is HBB:c.93-21G>A, base 110 of intron 1, a common cause of beta thalassemia: it
makes an AG, and most transcripts then begin exon 2 there, 19 bases early. The contributions to each allele's log-odds
sum to its difference from those of zeros, so what the alleles differ in sums to the variant's effect.

It needs, beside `pip install -e '.[models]'`:
- the PyPI package spliceai 1.3.1, which pip downloads in the first run, and which is read without being installed. It
  has the networks (for non-commercial use) and the places of exons in GRCh38.
- the DNA, GenBank's U01317, the beta globin region, from Debian's package emboss-test: from where `apt install
  emboss-test` puts it, or else downloaded by apt-get and read without being installed. On other systems, give a file
  with that record in EMBL's format: --record FILE.
"""

import argparse
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from packages import wheel

import jaxlift
from jaxlift import plot
from jaxlift.genomics import ensemble

try:
    from keras_models import log_probabilities_of
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[models]'") from error

SPLICEAI = "spliceai", "1.3.1"
SIDE = 5_000  # bases that the network sees on each side of a position
ACCEPTOR, DONOR = 1, 2  # classes; 0 is neither
FIRST = 62_136  # the gene's first base in the record, from 0
VARIANT, NEW_ACCEPTOR = 251, 253  # in the gene, from 0: G becomes A, and the base from which the exon goes on then
RECORD = "usr/share/EMBOSS/test/embl/hum1.dat"


def record_file(folder: Path = Path("output/packages")) -> Path:
    """The file with GenBank's U01317, of Debian's package."""
    if (installed := Path("/", RECORD)).exists():
        return installed
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not list(folder.glob("emboss-test_*.deb")):
            subprocess.run(["apt-get", "download", "--quiet", "emboss-test"], cwd=folder, check=True)
        subprocess.run(["dpkg-deb", "-x", next(folder.glob("emboss-test_*.deb")), folder / "emboss-test"], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"The DNA is in Debian's package emboss-test, which could not be had: {error}. Install it, `apt install "
            "emboss-test`, or give a file with GenBank's U01317 in EMBL's format: --record FILE."
        ) from error
    return folder / "emboss-test" / RECORD


def read_dna(file: Path) -> str:
    """The DNA of U01317, from a file in EMBL's format: between SQ and //, lines of bases with a number at the end."""
    _, found, record = file.read_text().partition("\nID   U01317;")
    if not found:
        raise SystemExit(f"{file} has no record U01317 in EMBL's format.")
    _, bases = record.partition("\n//")[0].partition("\nSQ ")[2].split("\n", 1)
    return "".join(filter(str.isalpha, bases)).upper()


def read_exons() -> list[tuple[int, int, str]]:
    """Those of HBB in chromosome 11 of GRCh38, half-open and from 0. The gene is on the strand -, so they descend."""
    for line in wheel(*SPLICEAI).read("spliceai/annotations/grch38.txt").decode().splitlines():
        name, *_, starts, ends = line.split("\t")
        if name == "HBB":
            pairs = list(zip(starts.split(",")[:-1], ends.split(",")[:-1], strict=True))[::-1]
            return [(int(a), int(b), f"exon {n}") for n, (a, b) in enumerate(pairs, 1)]
    raise ValueError("SpliceAI's annotation has no gene HBB.")


def one_hot(sequence: str) -> np.ndarray:
    """`(length, 4)`, in the order ACGT."""
    return np.eye(4, dtype=np.float32)[["ACGT".index(base) for base in sequence]]


def around(gene: np.ndarray, position: int) -> np.ndarray:
    """What the network sees of a gene `(length, 4)` for one position, with zeros outside: `(10001, 4)`."""
    return np.pad(gene, ((SIDE, SIDE), (0, 0)))[position : position + 2 * SIDE + 1]


def log_odds_of(network: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The log-odds of the classes in the middle of windows, `(N, 10001, 4) -> (N, 3)`."""

    def log_odds(x: jax.Array) -> jax.Array:
        log_probabilities = network(x)[:, 0]
        others = (jnp.roll(log_probabilities, shift, axis=1) for shift in (1, 2))
        return log_probabilities - jnp.logaddexp(*others)

    return log_odds


def picture(
    sites: dict[str, np.ndarray],
    starts: list[int],
    alleles: dict[str, np.ndarray],
    start: int,
    exons: list[plot.Span],
    variant: int,
) -> Figure:
    """The logos of the gene's splice sites, and below them those of the new acceptor. Lines are exons' boundaries."""
    figure = Figure((12, 2.9 + 1.6 * len(alleles)), layout="constrained")
    rows = figure.add_gridspec(1 + len(alleles), len(sites), height_ratios=[1.2] + [1.0] * len(alleles))
    spans = [*exons, (variant, variant + 1, "variant")]
    shared: dict[str, Any] = {"strand": "-", "spans": exons}
    drawn = [*sites.values(), *alleles.values()]
    shared["limits"] = min(np.minimum(s, 0).sum(1).min() for s in drawn), max(s.clip(0).sum(1).max() for s in drawn)
    for column, (name, place) in enumerate(zip(sites, starts, strict=True)):
        axes = plot.logo(sites[name], ax=figure.add_subplot(rows[0, column]), start=place, **shared)
        axes.set(xlabel="", ylabel="" if column else "contribution to the\nsite's log-odds")
        axes.set_title(name, fontsize="medium", pad=22)  # above the exon's name
    for row, (name, scores) in enumerate(alleles.items(), start=1):
        shared["spans"] = spans if row == 1 else [(first, last, "") for first, last, _ in spans]
        axes = plot.logo(scores, ax=figure.add_subplot(rows[row, :]), start=start, **shared)
        axes.set_ylabel(f"new acceptor,\n{name}")
        axes.tick_params(labelbottom=row == len(alleles))
        axes.set_xlabel("")
    for axes in figure.axes:
        for end in (end for first, last, _ in exons for end in (first - 0.5, last - 0.5)):
            if min(axes.get_xlim()) < end < max(axes.get_xlim()):
                axes.axvline(end, color="0.2", linewidth=1, linestyle="--")
    figure.supxlabel(
        "position on chromosome 11 (GRCh38), from 0; the gene is on the strand -, so it is read from high to low, "
        "as here from left to right",
        fontsize="small",
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/splice.png"), help="where the picture goes")
    parser.add_argument("--record", type=Path, help="a file with GenBank's U01317 in EMBL's format")
    parser.add_argument("--rule", choices=["rescale", "revealcancel"], default="rescale", help="of the contributions")
    options = parser.parse_args()

    exons = read_exons()
    start, end = exons[-1][0], exons[0][1]
    length = end - start
    dna = read_dna(options.record or record_file())[FIRST : FIRST + length]
    # In the gene, from 0: the first bases of exons but for the first exon's, and the last but for the last one's.
    places = {ACCEPTOR: [end - b for _, b, _ in exons[1:]], DONOR: [end - a - 1 for a, _, _ in exons[:-1]]}

    networks = [log_probabilities_of(*SPLICEAI, f"spliceai/models/spliceai{n}.h5") for n in range(1, 6)]

    @jax.jit
    def probabilities(genes: jax.Array) -> jax.Array:
        """What SpliceAI reports, of every position: `(N, length, 4) -> (N, length, 3)`."""
        padded = jnp.pad(genes, ((0, 0), (SIDE, SIDE), (0, 0)))
        return jnp.stack([jnp.exp(network(padded)) for network in networks]).mean(0)

    model = ensemble(map(log_odds_of, networks))
    normal, variant = one_hot(dna), one_hot(dna[:VARIANT] + "A" + dna[VARIANT + 1 :])
    probability = np.asarray(probabilities(jnp.stack([normal, variant])))
    errors = []

    def explain(kind: int, *questions: tuple[int, np.ndarray, np.ndarray]) -> list[np.ndarray]:
        """Contributions `(length, 4)` to a class, for each position, gene and reference."""
        x = np.stack([around(gene, place) for place, gene, _ in questions])
        references = np.stack([around(reference, place) for place, _, reference in questions])
        attr = jax.jit(jaxlift.attribute(model, target=model.mean(kind), rule=options.rule, full=True))
        scores, delta, *_ = jax.device_get(attr(x, reference=references[:, None]))
        errors.extend(np.abs(delta) / np.abs(scores).sum((1, 2)))
        return [score[SIDE - q[0] :][:length] for score, q in zip(scores, questions, strict=True)]

    nothing = np.zeros_like(normal)
    donors = explain(DONOR, *((place, normal, nothing) for place in places[DONOR]))
    *acceptors, before, after, between = explain(
        ACCEPTOR,
        *((place, normal, nothing) for place in places[ACCEPTOR]),
        (NEW_ACCEPTOR, normal, nothing),
        (NEW_ACCEPTOR, variant, nothing),
        (NEW_ACCEPTOR, variant, normal),
    )
    found = []
    for kind, name, scores in [(DONOR, "donor", donors), (ACCEPTOR, "acceptor", acceptors)]:
        for place, score in zip(places[kind], scores, strict=True):
            signal = slice(place + 1, place + 3) if kind == DONOR else slice(place - 2, place)
            number = places[kind].index(place) + (1 if kind == DONOR else 2)
            found.append((place, f"{name} of exon {number}", score))
            print(
                f"{name:8} at chr11:{end - place:,}: probability {probability[0, place, kind]:.3f}, contributions sum "
                f"to {score.sum():+.2f}, of which {dna[signal]} {score[signal].sum():+.2f}"
            )
    print(f"variant at chr11:{end - VARIANT:,}, {dna[VARIANT]} to A; new acceptor at {end - NEW_ACCEPTOR:,}:")
    chances = probability[:, NEW_ACCEPTOR, ACCEPTOR]
    print(f"probability {chances[0]:.4f} normally, {chances[1]:.3f} with the variant")
    print(
        f"contributions sum to {before.sum():+.2f} normally and {after.sum():+.2f} with the variant: its effect is "
        f"{after.sum() - before.sum():+.2f} log-odds"
    )
    print(
        f"explained against the normal gene: {between.sum():+.2f}, of which {between[VARIANT, 0]:+.2f} for the A that "
        f"came and {between[VARIANT, 2]:+.2f} for the G that went"
    )
    print(f"largest summation-to-delta error, relative to the sum of absolute contributions: {max(errors):.1e}")

    options.output.parent.mkdir(parents=True, exist_ok=True)
    found.sort(key=lambda site: site[0])
    wide, near = 14, slice(NEW_ACCEPTOR - 43, NEW_ACCEPTOR + 37)
    alleles = {"normal": before[near], "variant": after[near], "difference": after[near] - before[near]}
    picture(
        {name: score[place - wide : place + wide] for place, name, score in found},
        [end - place - wide for place, *_ in found],
        alleles,
        end - near.stop,
        exons,
        end - VARIANT - 1,
    ).savefig(options.output, dpi=150)
    print(f"picture: {options.output}")
    if not all(error <= 1e-4 for error in errors):  # NaN is an error too
        raise SystemExit("the contributions don't sum to the difference of the outputs")


if __name__ == "__main__":
    main()
