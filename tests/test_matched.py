"""References with a region's GC, against counting letters in text."""

import numpy as np
import pytest

pytest.importorskip("pyfaidx")

from jaxlift.genomics import Regions
from jaxlift.genomics import _matched as module
from jaxlift.genomics._matched import MatchedRegions

WIDTH = 50
REGIONS = [("chr1", 1000, 1050, "a"), ("chr2", 40, 90, "b"), ("chr1", 7000, 7050, "a"), ("chr2", 3000, 3080, "")]


@pytest.fixture(scope="module")
def contigs():
    """Stretches of different GC, with gaps, soft-masked letters, letters for several bases, and a short contig."""
    rng = np.random.default_rng(0)

    def stretch(gc, n=500):
        return "".join(rng.choice(list("GCAT"), n, p=[gc / 2, gc / 2, (1 - gc) / 2, (1 - gc) / 2]))

    chr1 = "N" * 130 + "".join(map(stretch, rng.uniform(0.3, 0.6, 30)))
    chr2 = "".join(map(stretch, rng.uniform(0.3, 0.6, 12))) + "NN" + stretch(0.5).lower() + "RYACGT"
    return {"chr1": chr1, "chr2": chr2, "short": "ACGT", "chr3": stretch(0.4, 60)}


@pytest.fixture(scope="module")
def genome(contigs, tmp_path_factory):
    path = tmp_path_factory.mktemp("matched") / "genome.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
    return path


def gc(text):
    known = [letter for letter in text.upper() if letter in "ACGT"]
    return sum(letter in "GC" for letter in known) / len(known)


def test_references_have_the_regions_gc(genome, contigs):
    matched = MatchedRegions(genome, WIDTH, per_region=7, tolerance=0.03)
    for contig, start, end, name in REGIONS:
        letters, places = matched(contig, start, end, name), matched.places(contig, start, end, name)
        assert letters.shape == (7, WIDTH)
        assert len(set(places)) == 7
        for row, (on, at) in zip(letters, places, strict=True):
            text = bytes(row).decode()
            assert text == contigs[on][at : at + WIDTH].upper()
            assert set(text) <= set("ACGT")
            assert abs(gc(text) - gc(contigs[contig][start:end])) <= 0.03 + 1e-9
            assert on != contig or at >= end or at + WIDTH <= start


def test_every_window_without_n_can_be_drawn(genome, contigs, monkeypatch):
    whole = MatchedRegions(genome, WIDTH).windows
    for piece in (1, 170):
        monkeypatch.setattr(module, "PIECE", piece)  # what is read at once doesn't matter
        windows = MatchedRegions(genome, WIDTH).windows
        for column in range(1, 5):
            np.testing.assert_array_equal(windows[column], whole[column])
    assert (np.diff(whole.gc) >= 0).all()
    found = {}
    for contig, start, count in zip(whole.contig, whole.start, whole.gc, strict=True):
        text = contigs[whole.names[contig]][start : start + WIDTH].upper()
        assert len(text) == WIDTH
        assert set(text) <= set("ACGT")
        assert count == round(WIDTH * gc(text))
        found.setdefault(whole.names[contig], []).append(start)
    assert set(found) == {"chr1", "chr2", "chr3"}
    assert len(found["chr1"]) == 300 - ((min(found["chr1"]) - 130) % WIDTH > 0)
    assert all(np.unique(np.diff(np.sort(starts)))[0] == WIDTH for starts in found.values() if len(starts) > 1)
    monkeypatch.setattr(module, "MOST", 100)
    assert len(MatchedRegions(genome, WIDTH).windows.start) <= 100


def test_references_depend_on_the_seed_the_name_and_the_place_alone(genome):
    forwards, backwards = (MatchedRegions(genome, WIDTH, per_region=5, tolerance=0.05) for _ in range(2))
    expected = {region: forwards.places(*region) for region in REGIONS}
    assert {region: backwards.places(*region) for region in REGIONS[::-1]} == expected
    [first, *_] = REGIONS
    assert forwards.places(*first[:3], "other") != expected[first]
    assert forwards.places("chr1", 1001, 1050, "a") != expected[first]
    assert MatchedRegions(genome, WIDTH, per_region=5, tolerance=0.05, seed=1).places(*first) != expected[first]


def test_excluded_windows_are_passed_over(genome):
    first = REGIONS[0]
    free = MatchedRegions(genome, WIDTH, per_region=6, tolerance=0.05).places(*first)
    (contig, start), (other, begin) = free[0], free[3]
    # One position of overlap excludes; one that only touches doesn't. A long region before them must not hide others.
    taken = Regions(
        [contig, other, free[1][0], free[1][0]],
        [start + WIDTH - 1, max(begin - 9, 0), free[1][1] + WIDTH, max(free[1][1] - 20, 0)],
        [start + WIDTH + 5, begin + 1, free[1][1] + WIDTH + 1, max(free[1][1], 1)],
    )
    kept = MatchedRegions(genome, WIDTH, per_region=6, tolerance=0.05, exclude=taken).places(*first)
    overlapping = [
        any(on == c and at < e and s < at + WIDTH for c, s, e in zip(taken.contig, taken.start, taken.end, strict=True))
        for on, at in free
    ]
    assert overlapping[0]
    assert overlapping[3]
    assert not overlapping[1]
    assert kept[: 6 - sum(overlapping)] == [place for place, out in zip(free, overlapping, strict=True) if not out]


def test_excluded_windows_against_all_pairs(genome, tmp_path):
    rng = np.random.default_rng(1)
    start = rng.integers(0, 6000, 40)
    taken = Regions(rng.choice(["chr1", "chr2"], 40), start, start + rng.integers(1, 400, 40))
    path = tmp_path / "taken.bed"
    path.write_text("".join(f"{c}\t{s}\t{e}\n" for c, s, e in zip(taken.contig, taken.start, taken.end, strict=True)))
    windows = MatchedRegions(genome, WIDTH, exclude=path).windows
    for contig, begin, is_excluded in zip(windows.contig, windows.start, windows.is_excluded, strict=True):
        on = taken.contig == windows.names[contig]
        assert is_excluded == (on & (taken.start < begin + WIDTH) & (begin < taken.end)).any()


def test_where_most_are_excluded_all_are_tried(genome):
    taken = Regions(["chr1", "chr2"], [0, 0], [16_000, 7000])
    matched = MatchedRegions(genome, WIDTH, per_region=1, tolerance=1, exclude=taken)
    assert len(matched.windows.start) > 10 * module.DRAWN
    for start in range(200, 300, 10):
        [(contig, _)] = matched.places("chr1", start, start + WIDTH)
        assert contig == "chr3"


def test_what_cannot_be_matched_is_said(genome):
    matched = MatchedRegions(genome, WIDTH, per_region=500, tolerance=0.01)
    with pytest.raises(ValueError, match=r"region a, chr1:1000-1050: its GC share is 0\.\d+, .* fewer than the 500"):
        matched.places(*REGIONS[0])
    with pytest.raises(ValueError, match="chrX:1-5: it doesn't lie within the genome, which has no such contig"):
        matched("chrX", 1, 5)
    with pytest.raises(ValueError, match=r"short:1-5: .* has 4 positions there"):
        matched("short", 1, 5)
    with pytest.raises(ValueError, match="chr1:0-50: it has no A, C, G or T"):
        matched("chr1", 0, 50)
    with pytest.raises(ValueError, match=r"tolerance=2 must be a share"):
        MatchedRegions(genome, WIDTH, tolerance=2)
    with pytest.raises(ValueError, match="width=0"):
        MatchedRegions(genome, 0)
