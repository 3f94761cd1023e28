"""The example from reads to motifs: what it simulates and compares, and that a quick run finds what it planted."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxlift import genomics

EXAMPLES = Path(__file__).parent.parent / "examples"
HAS_MODISCO = importlib.util.find_spec("modiscolite") is not None


@pytest.fixture
def data(example):
    return example("chip_data")


@pytest.fixture
def genome(data):
    """Two small contigs with reads, and what is planted in them."""
    return data.simulate(seed=1, contigs=2, length=30_000)


def test_background_has_the_dinucleotides_that_it_is_made_of(data):
    bases = data.background(np.random.default_rng(0), 200_000)
    pairs = np.bincount(4 * bases[:-1].astype(int) + bases[1:], minlength=16).reshape(4, 4)
    np.testing.assert_allclose(pairs / pairs.sum(), data.DINUCLEOTIDES / data.DINUCLEOTIDES.sum(), atol=0.002)


def test_planted_sites_fit_their_motifs(data, genome):
    contigs, sites = genome
    for name, factor in data.FACTORS.items():
        odds = np.log(factor.motif / data.FREQUENCIES)
        of_sites = []
        for site in (site for site in sites if site.factor == name):
            bases = contigs[site.contig].bases[site.start : site.end].astype(int)
            bases = bases if site.strand == "+" else 3 - bases[::-1]
            of_sites.append(odds[np.arange(len(bases)), bases].sum())
        assert len(of_sites) > 10
        # The mean of the log-odds of what a motif draws is its relative entropy to the background.
        assert np.mean(of_sites) == pytest.approx((factor.motif * odds).sum(), abs=1.5), name
        assert {site.strand for site in sites if site.factor == name} == {"+", "-"}


def test_reads_of_the_other_strand_are_the_mirror_image(data, genome):
    bases = genome[0]["chr1"].bases
    forward, reverse = data.expected(bases), data.expected(3 - bases[::-1])
    np.testing.assert_allclose(reverse[::-1, ::-1], forward, rtol=1e-9)


def test_reads_lie_upstream_and_downstream_of_a_site(data):
    factor = data.FACTORS["TAL1"]
    bases = np.zeros(1000, np.uint8)
    bases[500 : 500 + len(factor.motif)] = factor.motif.argmax(1)
    rates = data.expected(bases)
    middle = 500 + len(factor.motif) // 2
    assert rates.argmax(0).tolist() == [middle - factor.upstream, middle + factor.downstream]
    assert rates.sum(0) - 1000 * data.NOISE == pytest.approx(2 * [factor.reads], rel=0.05)


def test_tal1_brings_gata1_more_reads(data):
    gata1, tal1 = (data.FACTORS[name].motif.argmax(1) for name in ("GATA1", "TAL1"))

    def reads(*placed):
        bases = np.zeros(1000, np.uint8)
        for start, motif in placed:
            bases[start : start + len(motif)] = motif
        return data.expected(bases).sum()

    alone, far, near = reads((500, gata1)), reads((500, gata1), (200, tal1)), reads((500, gata1), (480, tal1))
    more = 2 * data.FACTORS["GATA1"].reads * (data.STRONGER - 1)
    assert near - far == pytest.approx(more, rel=0.1)
    assert far > alone


def test_peaks_are_where_sites_are(data, genome, tmp_path):
    contigs, _ = genome
    peaks = data.call_peaks(contigs, 1e-10, margin=300)
    assert len(peaks) > 50
    for peak in peaks:
        rates = contigs[peak.contig].rates[peak.summit - 50 : peak.summit + 50]
        assert peak.start <= peak.summit < peak.end
        assert rates.sum() > 3 * 200 / 2 * data.NOISE, peak
        assert peak.log10_p > 10
    reads = {"chr1": data.Contig(contigs["chr1"].bases, contigs["chr1"].rates, 0 * contigs["chr1"].reads + 1)}
    assert data.call_peaks(reads, 1e-10, margin=300) == []  # many, but everywhere


def test_library_reads_the_files(example, data, genome, tmp_path):
    contigs, _ = genome
    chip = example("chip")
    peaks = data.call_peaks(contigs, 1e-10, margin=300)
    data.write_genome(contigs, tmp_path / "genome.fa", tmp_path / "chrom.sizes")
    data.write_peaks(peaks, tmp_path / "peaks.narrowPeak")
    regions = genomics.read_regions(tmp_path / "peaks.narrowPeak")
    assert regions.summit.tolist() == [peak.summit for peak in peaks]
    seen = genomics.Windows(tmp_path / "genome.fa", regions, width=chip.INPUT)
    x, reads, _ = chip.windows(contigs, [(peak.contig, peak.summit) for peak in peaks])
    assert len(seen) == len(x) == len(peaks)
    np.testing.assert_array_equal(np.stack([seen[i] for i in range(len(seen))]), x)
    first = peaks[0]
    half = chip.OUTPUT // 2
    np.testing.assert_array_equal(reads[0], contigs[first.contig].reads[first.summit - half : first.summit + half])
    assert (tmp_path / "chrom.sizes").read_text() == "chr1\t30000\nchr2\t30000\n"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("start", [-1, 7])
def test_compare_finds_a_motif_in_a_pattern(example, data, reverse, start):
    report = example("chip_report")
    rng = np.random.default_rng(0)
    heights = report.heights(data.ETS)
    contributions = np.pad(0.5 * heights, ((start, 40 - start), (0, 0))) if start > 0 else 0.5 * heights[-start:]
    contributions = contributions + 0.01 * rng.normal(size=contributions.shape)
    contributions = contributions[::-1, ::-1] if reverse else contributions
    pattern = report.Pattern("pattern_0", contributions, 100)
    match = report.compare(data.ETS, pattern)
    assert match.similarity > 0.9
    assert (match.start, match.reverse) == (start, reverse)
    inside = report.aligned(match, len(heights))[report.FLANK : -report.FLANK]
    np.testing.assert_allclose(inside[2:], 0.5 * heights[2:], atol=0.05)
    planted = report.find_planted([pattern])
    assert {name for name, matches in planted.items() if matches[0].similarity >= report.FOUND} == {"ETS"}


def test_without_modisco_the_step_is_skipped(example, monkeypatch, capsys, tmp_path):
    chip = example("chip")
    monkeypatch.setattr(chip.shutil, "which", lambda *_, **__: None)
    assert chip.find_motifs(tmp_path, chip.QUICK) == {}
    assert "pip install 'jaxlift[motifs]'" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_run(tmp_path):
    script = [sys.executable, "-W", "error", EXAMPLES / "chip.py", "--quick", "--output", tmp_path]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    results = json.loads((tmp_path / "results.json").read_text())

    counts, profile = results["predictions"]["counts"], results["predictions"]["profile"]
    assert 0.6 < counts["network"] < counts["possible"]
    assert profile["possible"] < profile["network"] < 0.7 * profile["mean profile"]
    for target, means in results["tracks"].items():
        assert means["sites"] > 3 * means["elsewhere"], target
    for factor, of in results["variants"].items():
        assert of["in"] < 2 * min(of["beside"], -0.05), factor
    assert (tmp_path / "chip.png").exists()

    if not HAS_MODISCO:
        assert results["motifs"] == {}
        assert "modisco-lite is not installed" in printed
        return
    assert set(results["motifs"]) == {"counts", "profile"}
    for target, motifs in results["motifs"].items():
        found = [name for name, row in motifs.items() if row["patterns"]]
        assert found, target
        for name in found:
            assert motifs[name]["similarity"] > 0.85
            assert motifs[name]["seqlets"] >= 20
            assert f"found   {name}" in printed
