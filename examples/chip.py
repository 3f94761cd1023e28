"""From reads to motifs: train a small BPNet on a simulated ChIP-like experiment, and find out what it has learned.

A genome is simulated with planted motifs, and the reads that they bring. Peaks are called, a network learns to predict
the reads from the bases, its predictions are explained at every peak, and TF-MoDISco makes motifs of the scores. The
report says which of the planted motifs were found. The scores also go into bigWig files, as genome browsers show them,
and variants in motifs and beside them are explained.
"""

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    import pyBigWig
    from chip_data import Contig, Peak, Site, call_peaks, simulate, write_genome, write_peaks, write_variants
    from chip_network import INPUT, OUTPUT, WEIGHTS, BPNet
    from chip_report import AROUND, FOUND, Match, find_planted, picture, projected, read_patterns
    from flax import nnx
    from network_files import read, write
    from scipy.special import rel_entr
    from training import optimizer_of
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[examples,genomics,motifs]'") from error

EXAMPLES = Path(__file__).parent.resolve()  # where the commands find the network
TARGETS = ["counts", "profile"]  # which are the names of the network's outputs
HELD_OUT = "chr1"  # what the network doesn't see
SHIFT = 50  # windows in training lie so far from their summit at most
BATCH, BETWEEN = 32, 8  # windows in a step, and how many of them lie between the peaks
BY_CHANCE = 1e-10  # how likely a peak's reads may be without a site


@dataclass(frozen=True)
class Sizes:
    """How much is simulated, trained and explained."""

    contigs: int
    length: int  # of each contig
    steps: int  # of training
    shuffles: int  # of each peak's bases, which it is compared with
    seqlets: int  # that motifs are made of at most


FULL = Sizes(contigs=5, length=300_000, steps=3000, shuffles=10, seqlets=3000)
QUICK = Sizes(contigs=4, length=120_000, steps=600, shuffles=4, seqlets=800)
Places = list[tuple[str, int]]  # contigs, and the middle of a window in each


def windows(genome: dict[str, Contig], places: Places) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One-hot bases `(N, 320, 4)`, reads `(N, 200, 2)` in their middle, and how many the simulation expects there."""
    cut = [(genome[name], at - INPUT // 2, at - OUTPUT // 2) for name, at in places]
    return (
        np.eye(4, dtype=np.float32)[np.stack([contig.bases[start : start + INPUT] for contig, start, _ in cut])],
        np.stack([contig.reads[start : start + OUTPUT] for contig, _, start in cut]),
        np.stack([contig.rates[start : start + OUTPUT] for contig, _, start in cut]),
    )


def between_peaks(rng: np.random.Generator, genome: dict[str, Contig], peaks: list[Peak], count: int) -> Places:
    """Random places, so far from all summits that no window shows one in its middle."""
    summits = {name: np.array([p.summit for p in peaks if p.contig == name]) for name in genome}
    places: Places = []
    while len(places) < count:
        name = str(rng.choice(list(genome)))
        at = int(rng.integers(INPUT, len(genome[name].bases) - INPUT))
        if np.abs(summits[name] - at).min(initial=INPUT) >= INPUT:
            places.append((name, at))
    return places


def loss(model: BPNet, x: jax.Array, reads: jax.Array) -> jax.Array:
    """BPNet's: how unlikely the reads' places are, given their number, and the squared error of the logarithm of it.

    The first is divided by the mean number of reads, so that neither outweighs the other.
    """
    predicted, total = model(x), reads.sum((1, 2))
    places = -(reads * jax.nn.log_softmax(predicted["profile"], (1, 2))).sum((1, 2)).mean() / total.mean()
    return places + ((predicted["counts"][:, 0] - jnp.log1p(total)) ** 2).mean()


def train(genome: dict[str, Contig], peaks: list[Peak], steps: int, saved: Path, again: bool) -> BPNet:
    """A network that has seen the peaks and what lies between them; from a file, if it was trained before."""
    model = BPNet(nnx.Rngs(0))
    if saved.exists() and not again:
        read(saved, model)
        return model
    optimizer = optimizer_of(model, 1e-2, steps)

    @nnx.jit
    def step(model: BPNet, optimizer: nnx.Optimizer, x: jax.Array, reads: jax.Array) -> None:
        optimizer.update(model, nnx.grad(loss)(model, x, reads))

    genome = {name: contig for name, contig in genome.items() if name != HELD_OUT}
    peaks = [peak for peak in peaks if peak.contig != HELD_OUT]
    rng, start = np.random.default_rng(0), time.perf_counter()
    bound, unbound = [(p.contig, p.summit) for p in peaks], between_peaks(rng, genome, peaks, len(peaks))
    # With the right mean to begin with, the network learns from the first step on what makes peaks differ.
    model.counts.bias = nnx.Param(jnp.array([np.log1p(windows(genome, bound)[1].sum((1, 2))).mean()]))
    for _ in range(steps):
        shifts = rng.integers(-SHIFT, SHIFT + 1, BATCH - BETWEEN)
        at_peaks = [bound[i] for i in rng.integers(len(bound), size=BATCH - BETWEEN)]
        places = [(name, at + int(shift)) for (name, at), shift in zip(at_peaks, shifts, strict=True)]
        x, reads, _ = windows(genome, places + [unbound[i] for i in rng.integers(len(unbound), size=BETWEEN)])
        if rng.random() < 0.5:  # the other strand: positions, bases and strands change places
            x, reads = x[:, ::-1, ::-1], reads[:, ::-1, ::-1]
        step(model, optimizer, jnp.asarray(x), jnp.asarray(reads, jnp.float32))
    write(saved, model)
    print(f"trained on {BATCH * steps} windows in {time.perf_counter() - start:.0f} s")
    return model


def predictions(model: BPNet, x: np.ndarray, size: int = 100) -> dict[str, np.ndarray]:
    """The predictions for many windows: the logarithm of 1 and the reads `(N, 1)`, and probabilities `(N, 200, 2)`."""

    @nnx.jit
    def predict(model: BPNet, x: jax.Array) -> dict[str, jax.Array]:
        predicted = model(x)
        return predicted | {"profile": jax.nn.softmax(predicted["profile"], (1, 2))}

    parts = [predict(model, jnp.asarray(x[i : i + size])) for i in range(0, len(x), size)]
    return jax.tree.map(lambda *of_parts: np.concatenate(of_parts), *jax.device_get(parts))


def judge(model: BPNet, genome: dict[str, Contig], peaks: list[Peak]) -> dict[str, dict[str, float]]:
    """How well the network predicts the reads of the contig that it hasn't seen, and how well that can be done.

    The best that can be known are the reads that the simulation expects; the least that a profile has to beat is the
    mean of the peaks that it was trained on.
    """
    x, reads, rates = windows(genome, [(p.contig, p.summit) for p in peaks if p.contig == HELD_OUT])
    _, seen, _ = windows(genome, [(p.contig, p.summit) for p in peaks if p.contig != HELD_OUT])
    predicted, log_reads = predictions(model, x), np.log1p(reads.sum((1, 2)))
    profiles = {"network": predicted["profile"], "possible": rates, "mean profile": seen.sum(0)[None]}
    counts = {"network": predicted["counts"][:, 0], "possible": np.log1p(rates.sum((1, 2)))}

    def divergence(profile: np.ndarray) -> float:
        p, q = (a / a.sum((1, 2), keepdims=True) for a in (reads, profile))
        return float((rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum((1, 2)).mean() / 2 / np.log(2))

    return {
        "counts": {name: float(np.corrcoef(values, log_reads)[0, 1]) for name, values in counts.items()},
        "profile": {name: divergence(profile) for name, profile in profiles.items()},
    }


def run(folder: Path, *command: str) -> None:
    """Run a command in a folder, and show it as it would be typed there."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    name, *arguments = command
    program = [sys.executable, "-m", "jaxlift"] if name == "jaxlift" else [str(installed(name))]
    path = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([*program, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": path}, check=True)


def installed(name: str) -> str | None:
    """The program that a package installed beside this Python."""
    return shutil.which(name, path=sysconfig.get_path("scripts"))


def explain(folder: Path, sizes: Sizes) -> None:
    """Score all peaks for both outputs of the network, and write what other programs read."""
    run(
        folder, "jaxlift", "score", "chip_network:trained", "genome.fa", "--regions", "peaks.narrowPeak",
        "--width", str(INPUT), "--target", ",".join(TARGETS), "--output", "hypothetical",
        "--reference", "dinucleotide_shuffle", "--shuffles", str(sizes.shuffles), "--out", "scores.zarr", "--overwrite",
    )  # fmt: skip
    for target in TARGETS:
        files = ["--h5", f"{target}.h5", "--bigwig", f"{target}.bw", "--chrom-sizes", "chrom.sizes"]
        run(folder, "jaxlift", "export", "scores.zarr", "--target", target, *files)


def find_motifs(folder: Path, sizes: Sizes) -> dict[str, dict[str, list[Match]]]:
    """By target, how like the planted motifs the patterns are that TF-MoDISco finds; nothing if it isn't installed."""
    if installed("modisco") is None:
        print("\nno motifs are looked for: modisco-lite is not installed (pip install 'jaxlift[motifs]')")
        return {}
    found = {}
    for target in TARGETS:
        files = ["-i", f"{target}.h5", "-o", f"{target}.modisco.h5"]
        run(folder, "modisco", "motifs", *files, "-n", str(sizes.seqlets), "-w", str(INPUT))
        found[target] = find_planted(read_patterns(folder / f"{target}.modisco.h5"))
    return found


def report(found: dict[str, dict[str, list[Match]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Print which of the planted motifs were found, and how like what was planted; the same by target and motif."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for target, planted in found.items():
        print(f"\nplanted motifs, by contributions to {target}\n{'':16}similarity  seqlets  patterns")
        table[target] = {}
        for name, matches in planted.items():
            having = [match.pattern for match in matches if match.similarity >= FOUND]
            table[target][name] = row = {
                "similarity": max([0.0, *(match.similarity for match in matches)]),
                "seqlets": sum(pattern.seqlets for pattern in having),
                "patterns": [pattern.name for pattern in having],
            }
            print(
                f"{'found' if having else 'missed':8}{name:8}{row['similarity']:10.2f}{row['seqlets']:9}  "
                + ", ".join(row["patterns"])
            )
    return table


def in_track(path: Path, planted: list[Site], peaks: list[Peak]) -> dict[str, float]:
    """The mean size of a bigWig file's values at planted sites, and at the other bases of the peaks."""
    with pyBigWig.open(str(path)) as track:
        at_sites, elsewhere = [], []
        for peak in peaks:
            values = np.abs(track.values(peak.contig, peak.start, peak.end, numpy=True))
            is_site = np.zeros(len(values), bool)
            for site in planted:
                if site.contig == peak.contig and site.start < peak.end and site.end > peak.start:
                    is_site[max(site.start - peak.start, 0) : site.end - peak.start] = True
            has_value = np.isfinite(values)
            at_sites.append(values[has_value & is_site])
            elsewhere.append(values[has_value & ~is_site])
    return {"sites": float(np.concatenate(at_sites).mean()), "elsewhere": float(np.concatenate(elsewhere).mean())}


def shown_peak(peaks: list[Peak], planted: list[Site]) -> int:
    """The number of a peak that the network hasn't seen: of those with the most motifs, one with a typical signal."""
    motifs = {
        number: len({s.factor for s in planted if s.contig == HELD_OUT and abs(s.start - peak.summit) < AROUND - 20})
        for number, peak in enumerate(peaks)
        if peak.contig == HELD_OUT
    }
    with_most = [number for number, count in motifs.items() if count == max(motifs.values())]
    return sorted(with_most, key=lambda number: peaks[number].signal)[len(with_most) // 2]


def effects(folder: Path) -> dict[str, dict[str, float]]:
    """Explain variants in motifs and beside them: how much they change the predicted reads, as log2, at the median."""
    run(
        folder, "jaxlift", "variants", "chip_network:trained", "genome.fa", "--vcf", "variants.vcf",
        "--width", str(INPUT), "--target", "counts", "--out", "variants.zarr", "--overwrite",
    )  # fmt: skip
    changes: dict[str, dict[str, list[float]]] = {}
    with (folder / "variants.effects.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            factor, _, place = row["variant_id"].split("_")
            changes.setdefault(factor, {}).setdefault(place, []).append(float(row["logfc"]))
    medians = {
        factor: {place: float(np.median(of)) for place, of in found.items()} for factor, found in changes.items()
    }
    print("\nlog2 fold change of the reads, by a variant in a motif and by one beside it")
    for factor, of in medians.items():
        print(f"{factor:8}{of['in']:8.2f}{of['beside']:8.2f}")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/chip"), help="the directory for what is made")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works")
    parser.add_argument("--retrain", action="store_true", help="don't take the network from an earlier run")
    options = parser.parse_args()
    sizes, folder = QUICK if options.quick else FULL, options.output
    folder.mkdir(parents=True, exist_ok=True)

    genome, planted = simulate(seed=0, contigs=sizes.contigs, length=sizes.length)
    peaks = call_peaks(genome, BY_CHANCE, margin=INPUT // 2 + SHIFT)
    write_genome(genome, folder / "genome.fa", folder / "chrom.sizes")
    write_peaks(peaks, folder / "peaks.narrowPeak")
    write_variants(genome, [site for site in planted if site.contig == HELD_OUT], folder / "variants.vcf")
    reads = sum(int(contig.reads.sum()) for contig in genome.values())
    print(f"{len(genome)} x {sizes.length} bases, {len(planted)} planted motifs, {reads} reads: {len(peaks)} peaks")

    model = train(genome, peaks, sizes.steps, folder / f"network-{sizes.steps}.npz", options.retrain)
    write(folder / WEIGHTS, model)
    results: dict[str, Any] = {"predictions": judge(model, genome, peaks)}
    counts, profile = results["predictions"]["counts"], results["predictions"]["profile"]
    print(
        f"on {HELD_OUT}, which it hasn't seen:\n"
        f"correlation of log counts: {counts['network']:.3f} (possible: {counts['possible']:.3f})\n"
        f"divergence of the profile: {profile['network']:.3f} (possible: {profile['possible']:.3f}; "
        f"of the mean profile: {profile['mean profile']:.3f})"
    )

    print(f"\nin {folder}, with PYTHONPATH={EXAMPLES}:")
    explain(folder, sizes)
    results["tracks"] = {target: in_track(folder / f"{target}.bw", planted, peaks) for target in TARGETS}
    found = find_motifs(folder, sizes)
    results["motifs"] = report(found)
    results["variants"] = effects(folder)
    print()
    for target, means in results["tracks"].items():
        print(
            f"{target}.bw: {means['sites']:.2g} in size at a planted base, {means['elsewhere']:.2g} elsewhere in peaks"
        )

    shown = shown_peak(peaks, planted)
    scores = {target: projected(folder / f"{target}.h5", shown) for target in TARGETS}
    x, _, _ = windows(genome, [(peaks[shown].contig, peaks[shown].summit)])
    predicted = predictions(model, x)
    expected = np.expm1(predicted["counts"][0]) * predicted["profile"][0]
    picture(peaks[shown], genome[HELD_OUT], planted, scores, expected, found).savefig(folder / "chip.png", dpi=130)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"picture and results.json: {folder}")


if __name__ == "__main__":
    main()
