"""Regions, windows of a genome, and runs over them."""

import contextlib
import gzip
import os
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pysam
import pytest
import scored
import xarray
import zarr

import jaxlift
from jaxlift import references
from jaxlift.commands._main import main
from jaxlift.genomics import MatchedRegions, Regions, Windows, read_regions
from jaxlift.scoring import Status, StoreError
from jaxlift.scoring._examples import Encoding, open_array
from jaxlift.scoring._letters import Ambiguous, letters_of, one_hot_of, reverse_complement
from jaxlift.scoring._store import Store

WIDTH = scored.LENGTH
RNG = np.random.default_rng(7)
CONTIGS = {name: "".join(RNG.choice(list("ACGTacgt"), n)) for name, n in (("chr1", 1000), ("chr2", 300))}
CONTIGS["chr2"] = CONTIGS["chr2"][:150] + "NNNR" + CONTIGS["chr2"][154:]
PEAKS = [  # contig, start, end, name, strand, summit's offset
    ("chr1", 100, 300, "first", ".", 30),
    ("chr2", 100, 200, "unknown", "+", -1),
    ("chr1", 400, 420, "turned", "-", 5),
    ("chr1", 0, 30, "outside", ".", 4),
    ("chr3", 50, 90, "missing", ".", -1),
    ("chr1", 300, 340, "last", "+", 20),
]
COMPLEMENT = dict(zip("ACGTNR", "TGCANY", strict=True))


@pytest.fixture
def files(tmp_path):
    """A genome and peaks in it."""
    with (tmp_path / "genome.fa").open("w") as file:
        for name, text in CONTIGS.items():
            print(f">{name} and more", *(text[i : i + 50] for i in range(0, len(text), 50)), sep="\n", file=file)
    lines = [f"{c}\t{s}\t{e}\t{n}\t0\t{d}\t1.5\t-1\t-1\t{o}" for c, s, e, n, d, o in PEAKS]
    (tmp_path / "peaks.narrowPeak").write_text("\n".join(["track name=peaks", "# a comment", "", *lines]) + "\n")
    return tmp_path


def windows(files, peaks="peaks.narrowPeak", **options):
    return Windows(files / "genome.fa", files / peaks, **{"width": WIDTH} | options)


def text_of(contig, centre, strand):
    """A window, cut out of the genome by hand."""
    start = centre - WIDTH // 2
    text = CONTIGS[contig][start : start + WIDTH].upper()
    return "".join(COMPLEMENT[letter] for letter in reversed(text)) if strand == "-" else text


def test_regions(files):
    regions = read_regions(files / "peaks.narrowPeak")
    assert [*regions.name] == [peak[3] for peak in PEAKS]
    assert regions.summit.tolist() == [130, -1, 405, 4, -1, 320]
    assert regions.centre.tolist() == [130, 150, 405, 4, 70, 320]
    assert [*regions.strand] == [peak[4] for peak in PEAKS]
    with gzip.open(files / "peaks.bed.gz", "wt") as file:
        file.write("chr1 10 20\nchr1\t30\t41\tname\n")
    short = read_regions(files / "peaks.bed.gz")
    assert [*short.name] == ["chr1:10-20", "name"]
    assert short.centre.tolist() == [15, 35]
    assert [*short.strand] == [".", "."]
    regions.write(files / "again.bed")
    again = read_regions(files / "again.bed")
    for column in ("contig", "start", "end", "name", "strand", "summit"):
        np.testing.assert_array_equal(getattr(again, column), getattr(regions, column))


def test_a_gzipped_file_of_any_name(files):
    (files / "peaks.bed").write_bytes(gzip.compress(b"chr1\t10\t20\n"))
    assert read_regions(files / "peaks.bed").end.tolist() == [20]
    (files / "genome.fa").write_bytes(gzip.compress((files / "genome.fa").read_bytes()))
    with pytest.raises(
        ValueError, match=r"genome\.fa is gzipped, and its name doesn't say so: .*name it genome\.fa\.gz"
    ):
        windows(files)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no regions"]),
        ("chr1\t10\n", ["line 1", "contig, start and end, two whole numbers, with tabs", "'chr1\\t10'."]),
        ("chrom\tstart\tend\n", ["line 1", "If these are the columns' names, remove the line, or begin it with '#'."]),
        ("chr1\t10\t20\nchr1\tten\t20\n", ["line 2"]),
        ("chr1\t20\t10\n", ["line 1", "0 <= start < end"]),
        ("chr1\t10\t20\ta\t0\tx\n", ["strand", "'x'"]),
        (f"chr1\t10\t{10**19}\n", ["line 1", "0 <= start < end, less than 2^63"]),
        ("chr1\t10\t20\ta\t0\t+\t1\t1\t1\t10\n", ["summit", "outside"]),
    ],
)
def test_what_is_no_bed_file(tmp_path, text, parts):
    (tmp_path / "bad.bed").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.bed") as error:
        read_regions(tmp_path / "bad.bed")
    assert all(part in str(error.value) for part in parts)


def test_regions_of_arrays():
    with pytest.raises(ValueError, match=r"region 1, a:5-5: expected 0 <= start < end"):
        Regions(["a", "a"], [1, 5], [2, 5])
    with pytest.raises(ValueError, match="strands must be"):
        Regions(["a"], [1], [2], strand=["?"])
    with pytest.raises(ValueError, match=r"name has shape \(2,\), expected \(1,\)"):
        Regions(["a"], [1], [2], name=["b", "c"])


@pytest.mark.parametrize("channel_axis", [-1, -2, 0, 1])
@pytest.mark.parametrize("unknown", ["zeros", "quarters"])
@pytest.mark.parametrize("ambiguous", ["unknown", "shares"])
def test_windows(files, channel_axis, unknown, ambiguous):
    """Letter by letter, from the text of the genome."""
    found = windows(files, channel_axis=channel_axis, unknown=unknown, ambiguous=ambiguous)
    kept = [("chr1", 130, "."), ("chr2", 150, "+"), ("chr1", 405, "-"), ("chr1", 320, "+")]
    nothing = [0.25] * 4 if unknown == "quarters" else [0.0] * 4
    rows = {base: [float(base == other) for other in "ACGT"] for base in "ACGT"} | {"N": nothing}
    rows |= {"R": [0.5, 0, 0.5, 0], "Y": [0, 0.5, 0, 0.5]} if ambiguous == "shares" else {"R": nothing, "Y": nothing}
    wanted = np.array([[rows[letter] for letter in text_of(*each)] for each in kept], np.float32)
    if channel_axis in (-2, 0):
        wanted = wanted.transpose(0, 2, 1)
    np.testing.assert_array_equal(found.read(0, 10).values, wanted)
    np.testing.assert_array_equal(found[2], wanted[2])
    np.testing.assert_array_equal(found[-1], wanted[-1])
    assert len(found) == len(kept)
    assert [*found.left_out.name] == ["outside", "missing"]
    assert found.columns["start"].tolist() == [centre - WIDTH // 2 for _, centre, _ in kept]
    assert [*found.columns["strand"]] == [strand for *_, strand in kept]


def test_windows_as_wide_as_their_regions(files):
    (files / "even.bed").write_text("chr1\t100\t140\nchr1\t301\t341\n")
    found = windows(files, "even.bed", width=None)
    assert found.columns["start"].tolist() == [100, 301]
    assert found.shape == (40, 4)


def test_some_of_the_windows(files):
    found = windows(files)
    some = found[1:3]
    np.testing.assert_array_equal(some.read(0, 9).values, found.read(1, 3).values)
    assert [*some.columns["name"]] == ["unknown", "turned"]
    assert (len(some), len(some.left_out), len(found)) == (2, 0, 4)


def test_regions_beyond_their_contigs(files):
    """Mostly of another assembly, or of a file that is cut short; whether or not their windows are in the contig."""
    length = len(CONTIGS["chr2"])
    lines = [("chr2", 100, 140), ("chr2", 0, 4), ("chr2", length - 30, length + 1), ("chr2", length, length + 9)]
    (files / "beyond.bed").write_text("".join(f"{c}\t{s}\t{e}\n" for c, s, e in lines))
    message = rf"2 of 4 regions end beyond their contig, such as chr2:{length - 30}-{length + 1}\. Is the genome the"
    with pytest.warns(UserWarning, match=message):
        found = windows(files, "beyond.bed")
    [note] = found.accompany(files / "s.zarr")
    assert f"2 of 4 regions left out, because they end beyond their contig: chr2:{length - 30}-" in note
    assert "1 of 4 regions left out, because a window of 40 leaves the contig: chr2:0-4. The other one is in" in note


def test_an_index_that_can_not_be_written(files, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != files)
    with pytest.raises(
        PermissionError, match=r"genome\.fa\.fai is missing, and can't be written there: run `samtools fai"
    ):
        windows(files)


def test_windows_of_one_strand(files):
    found = windows(files, stranded=False)
    np.testing.assert_array_equal(found[2], windows(files)[2][::-1, ::-1])
    assert found.columns["strand"][2] == "+"


def test_letters_that_are_refused(files):
    found = windows(files, ambiguous="refuse")
    records = found.read(0, 4)
    assert records.status.tolist() == [Status.SCORED, Status.MALFORMED, Status.SCORED, Status.SCORED]
    assert "'R' at position 24 is none of ACGTUN" in records.messages[1]


def test_windows_that_cant_be(files):
    with pytest.raises(
        ValueError, match=r"no region has a window.*2000 leaves the contig.*no contig chr3; it has chr1"
    ):
        windows(files, width=2000)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.fa"):
        Windows(files / "nowhere.fa", files / "peaks.narrowPeak", 10)
    with pytest.raises(ValueError, match="width=0 must be an int, 1 at least"):
        windows(files, width=0)
    with pytest.raises(ValueError, match="unknown='x' must be one of 'zeros', 'quarters'"):
        windows(files, unknown="x")
    with pytest.raises(IndexError, match="no window 4: there are 4"):
        windows(files)[4]
    with gzip.open(files / "packed.fa.gz", "wt") as file:
        file.write(">a\nACGT\n")
    with pytest.raises(OSError, match="bgzip"):
        Windows(files / "packed.fa.gz", Regions(["a"], [0], [4]), 4)


def test_the_store_knows_its_place(files):
    attr = jaxlift.attribute(scored.model, target=1)
    out = files / "scores.zarr"
    summary = jaxlift.score(attr, windows(files), out=out, reference="uniform", progress="none")
    assert (summary.examples, summary.scored) == (4, 4)
    assert "1 of 6 regions left out, because a window of 40 leaves the contig: outside." in str(summary)
    assert "no contig chr3; it has chr1, chr2" in str(summary)
    assert [*read_regions(files / "scores.kept.bed").name] == ["first", "unknown", "turned", "last"]
    data = xarray.open_zarr(out, consolidated=False)
    assert data.contributions.dims == ("example", "position", "letter")
    assert data.sequence.dims == ("example", "position")
    assert [*data.contig.values] == ["chr1", "chr2", "chr1", "chr1"]
    assert [*data.name.values] == ["first", "unknown", "turned", "last"]
    assert data.summit.values.tolist() == [130, 150, 405, 320]
    assert (data.end - data.start == WIDTH).all()
    text = data.sequence.values.tobytes().decode()
    expected = "".join(text_of(*each) for each in (("chr1", 130, "."), ("chr2", 150, "+"), ("chr1", 405, "-")))
    assert text[: 3 * WIDTH] == expected.replace("R", "N")
    store = Store(out, "r")
    np.testing.assert_array_equal(store.one_hot(0, 4), windows(files).read(0, 4).values)
    np.testing.assert_allclose(
        store.scored(0, 4), attr(windows(files).read(0, 4).values, reference=jnp.full((WIDTH, 4), 0.25)), atol=1e-7
    )


@pytest.mark.slow
def test_references_go_with_the_place(files):
    """Not with the number in the file: of any part of the regions, in any order, the shuffles are the same."""
    lines = (files / "peaks.narrowPeak").read_text().splitlines()[3:]
    (files / "other.narrowPeak").write_text("\n".join([lines[5], lines[0], lines[2]]) + "\n")
    attr = jaxlift.attribute(scored.model, target=1)
    for name in ("dinucleotide_shuffle", "mononucleotide_shuffle"):
        for peaks in ("peaks", "other"):
            examples = windows(files, f"{peaks}.narrowPeak")
            jaxlift.score(attr, examples, out=files / f"{peaks}-{name}", reference=name, shuffles=3, progress="none")
        first, other = (zarr.open(files / f"{peaks}-{name}")["contributions"][:] for peaks in ("peaks", "other"))
        np.testing.assert_array_equal(other, first[[3, 0, 2]])
        assert (first[0] != first[3]).any()


def test_shuffles_of_records_go_with_their_names(tmp_path):
    texts = ["".join(RNG.choice(list("ACGT"), WIDTH)) for _ in range(3)]
    attr = jaxlift.attribute(scored.model, target=1)
    for order in ([0, 1, 2], [2, 0]):
        path = tmp_path / f"{len(order)}.fa"
        path.write_text("".join(f">record{i} and more\n{texts[i]}\n" for i in order))
        out = tmp_path / f"{len(order)}.zarr"
        jaxlift.score(attr, path, out=out, reference="dinucleotide_shuffle", shuffles=3, progress="none")
    three, two = (zarr.open(tmp_path / f"{n}.zarr") for n in (3, 2))
    np.testing.assert_array_equal(two["contributions"][:], three["contributions"][:][[2, 0]])
    assert [*two["name"][:]] == ["record2", "record0"]


def test_other_regions_are_refused(files):
    attr = jaxlift.attribute(scored.model, target=1)
    jaxlift.score(attr, windows(files), out=files / "scores", reference="zeros", progress="none")
    (files / "other.bed").write_text((files / "peaks.narrowPeak").read_text().replace("first", "another"))
    with pytest.raises(StoreError, match=r"other settings:\n  the names in column 4 of \S+other\.bed differ\nGo on"):
        jaxlift.score(attr, windows(files, "other.bed"), out=files / "scores", reference="zeros", progress="none")


def test_another_genome_of_the_same_name_is_refused(files):
    attr = jaxlift.attribute(scored.model, target=1)
    more = {"out": files / "scores", "reference": "zeros", "progress": "none"}
    jaxlift.score(attr, windows(files), **more)
    assert jaxlift.score(attr, windows(files), **more).computed == 0
    lines = (files / "genome.fa").read_text().splitlines()
    others = [line if line.startswith(">") else line.translate(str.maketrans("ACGT", "CAGT")) for line in lines]
    (files / "genome.fa").write_text("\n".join(others) + "\n")
    with pytest.raises(StoreError, match=r"examples\.sample\.0: the store has"):
        jaxlift.score(attr, windows(files), **more)


WEIGHTS = RNG.normal(size=(6, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("target", "pick"),
    [
        (np.array([0, 2, 1, 1, 0, 2]), lambda y, i: y[[0, 2, 1, 1, 0, 2][i]]),
        (WEIGHTS, lambda y, i: (y * WEIGHTS[i]).sum()),
        (jaxlift.Held(lambda y, w: w, rows=(WEIGHTS,)), lambda y, i: (y * WEIGHTS[i]).sum()),
    ],
    ids=["labels", "weights", "held"],
)
def test_a_target_of_each_example(tmp_path, target, pick):
    """In batches of four, of which the second is not full."""
    x, reference = scored.sequences(6), np.full((WIDTH, 4), 0.25, np.float32)
    attr = jaxlift.attribute(scored.model, target=target)
    jaxlift.score(attr, x, out=tmp_path / "scores", reference="uniform", batch_size=4, progress="none")
    found = zarr.open(tmp_path / "scores")
    for i in range(6):
        one = jaxlift.attribute(lambda x, i=i: jax.vmap(lambda y: pick(y, i))(scored.model(x)))
        np.testing.assert_allclose(found["contributions"][i], one(x[i : i + 1], reference=reference)[0], atol=2e-6)
    changed = jax.tree.map(lambda a: a[::-1], target)
    with pytest.raises(StoreError, match=r"attribution\.target"):
        jaxlift.score(jaxlift.attribute(scored.model, target=changed), x, out=tmp_path / "scores", reference="uniform")
    with pytest.raises(ValueError, match=r"a row for each of 6 examples, but .* has 5"):
        jaxlift.score(attr, x[:5], out=tmp_path / "other", reference="uniform", progress="none")


def test_several_targets(tmp_path):
    x = scored.sequences(5)
    target = jaxlift.Held(lambda y: jnp.stack([jnp.ones_like(y), jax.nn.softmax(y)], 1), names=("sum", "soft"))
    jaxlift.score(
        jaxlift.attribute(scored.model, target=target), x, out=tmp_path / "scores", reference="zeros", progress="none"
    )
    data = xarray.open_zarr(tmp_path / "scores", consolidated=False)
    assert data.contributions.dims == ("example", "target", "position", "letter")
    assert data.delta.dims == ("example", "target")
    assert [*data.target.values] == ["sum", "soft"]
    store = Store(tmp_path / "scores", "r")
    alone = jaxlift.attribute(lambda x: scored.model(x).sum(1))(x, reference=jnp.zeros((WIDTH, 4)))
    np.testing.assert_allclose(store.scored(0, 5, "sum"), alone, atol=2e-6)
    with pytest.raises(ValueError, match="say target=sum or soft"):
        store.scored(0, 5)
    with pytest.raises(ValueError, match="no target 'profile'; it has sum, soft"):
        store.scored(0, 5, "profile")
    total = store.scored(0, 5, "soft").sum((1, 2))
    np.testing.assert_allclose(total, data.output[:, 1] - data.output_reference[:, 1], atol=2e-6)


def test_what_has_no_sequence(tmp_path):
    x = RNG.normal(size=(4, WIDTH, 4)).astype(np.float32)
    jaxlift.score(
        jaxlift.attribute(scored.model, target=0), x, out=tmp_path / "scores", reference="zeros", progress="none"
    )
    with pytest.raises(ValueError, match="no sequences: its examples were not one-hot"):
        Store(tmp_path / "scores", "r").one_hot(0, 4)


@pytest.mark.slow
def test_the_command(files, monkeypatch, capsys):
    """Windows, layouts, strands and an ensemble; against what the library gives."""
    monkeypatch.chdir(files)
    monkeypatch.syspath_prepend(str(scored.ROOT / "tests"))
    run = ["score", "scored:model", "genome.fa", "--regions", "peaks.narrowPeak", "--width", "40", "--target", "1"]
    assert main([*run, "--reference", "uniform", "--out", "one"]) == 0
    assert "left out" in capsys.readouterr().out
    x = windows(files).read(0, 4).values
    reference = jnp.full((WIDTH, 4), 0.25)
    wanted = jaxlift.attribute(scored.model, target=1)(x, reference=reference)
    np.testing.assert_allclose(zarr.open("one")["contributions"][:], wanted, atol=1e-6)
    run[1] = "scored:letters_first"
    assert main([*run, "--reference", "uniform", "--layout", "N4L", "--out", "two", "--quiet"]) == 0
    np.testing.assert_allclose(zarr.open("two")["contributions"][:], wanted.transpose(0, 2, 1), atol=1e-6)
    np.testing.assert_array_equal(Store(files / "two", "r").one_hot(0, 4), x)
    run[1] = "scored:model,scored:other"
    assert main([*run, "--reference", "uniform", "--strands", "both", "--out", "three", "--quiet"]) == 0
    turned = jaxlift.attribute(scored.model, target=1)(x[:, ::-1, ::-1], reference=reference)[:, ::-1, ::-1]
    other = jaxlift.attribute(scored.other, target=1)
    others = other(x, reference=reference) + other(x[:, ::-1, ::-1], reference=reference)[:, ::-1, ::-1]
    np.testing.assert_allclose(zarr.open("three")["contributions"][:], (wanted + turned + others) / 4, atol=2e-6)
    run[1] = "scored:heads"
    for head in ("main", "1"):  # the keys of a dictionary are in order
        assert main([*run, "--head", head, "--reference", "uniform", "--out", head, "--quiet"]) == 0
        np.testing.assert_allclose(zarr.open(head)["contributions"][:], wanted, atol=1e-6)
    named = [*run[:-1], "counts@counts,profile_held@main", "--reference", "uniform", "--out", "named", "--quiet"]
    assert main(named) == 0
    store = Store(files / "named", "r")
    assert store.targets == ("counts", "profile_held")
    counts = jaxlift.attribute(lambda x: scored.heads(x)["counts"].sum(1))(x, reference=reference)
    np.testing.assert_allclose(store.scored(0, 4, "counts"), counts, atol=2e-6)
    logits = scored.model(x)
    weights = jax.nn.softmax(logits, 1)
    held = jaxlift.attribute(lambda x: scored.model(x) - scored.model(x).mean(1, keepdims=True), target=weights)
    np.testing.assert_allclose(store.scored(0, 4, "profile_held"), held(x, reference=reference), atol=2e-6)
    (files / "text.npy").write_text("no array")
    assert main([*run[:-1], "text.npy", "--quiet"]) == 74
    assert "text.npy is damaged, cut short, or no array" in capsys.readouterr().err
    np.save("labels.npy", np.array([0, 1, 2, 1]))
    run[1] = "scored:model"
    assert main([*run[:-1], "labels.npy", "--reference", "uniform", "--out", "four", "--quiet"]) == 0
    labelled = jaxlift.attribute(scored.model, target=np.array([0, 1, 2, 1]))(x, reference=reference)
    np.testing.assert_allclose(zarr.open("four")["contributions"][:], labelled, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--regions", "peaks.narrowPeak"], ["regions have 20 to 200 positions", "--width"]),
        (["--width", "40"], ["--width is for windows of a genome: give --regions"]),
        (["--regions", "nowhere.bed", "--width", "40"], ["nowhere.bed"]),
        (["--regions", "peaks.narrowPeak", "--width", "40", "--target", "count"], ["count", "counts"]),
        (["--regions", "peaks.narrowPeak", "--width", "40", "--layout", "N4L"], ["(1, 4, 40)"]),
        (["--regions", "peaks.narrowPeak", "--width", "40", "--head", "x"], ["no head 'x'", "there is one array"]),
        (["--regions", "peaks.narrowPeak", "--width", "40", "--target", "all", "--head", "x"], ["leave it out"]),
        (["--regions", "peaks.narrowPeak", "--width", "40", "--strands", "both", "--target", "1,2"], ["turn"]),
    ],
)
def test_messages_of_the_command(files, monkeypatch, capsys, arguments, parts):
    monkeypatch.chdir(files)
    monkeypatch.syspath_prepend(str(scored.ROOT / "tests"))
    with contextlib.suppress(SystemExit):  # the parser's
        assert main(["score", "scored:model", "genome.fa", "--target", "1", *arguments]) == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in parts), printed


def test_letters():
    text = np.frombuffer(b"ACGTUNRacgtunr", np.uint8)
    np.testing.assert_array_equal(letters_of(one_hot_of(text)), np.frombuffer(b"ACGTTNNACGTTNN", np.uint8))
    np.testing.assert_array_equal(letters_of(one_hot_of(text, "quarters", "shares")), letters_of(one_hot_of(text)))
    assert reverse_complement(np.frombuffer(b"AACGRNu", np.uint8)).tobytes() == b"aNYCGTT"


def test_fasta_with_letters_for_several_bases(tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGR\n>b\nACGT\n")
    wanted = {"shares": [0.5, 0, 0.5, 0], "unknown": [0, 0, 0, 0]}
    for ambiguous in get_args(Ambiguous):
        with contextlib.closing(open_array(tmp_path / "x.fa", Encoding(ambiguous=ambiguous))) as examples:
            records = examples.read(0, 2)
        if ambiguous == "refuse":
            assert records.status.tolist() == [Status.MALFORMED, Status.SCORED]
        else:
            assert records.values[0, 3].tolist() == wanted[ambiguous]


def test_shuffles_are_of_the_key_of_the_place(files):
    """The very shuffles, drawn by hand."""
    examples = windows(files)
    attr = jaxlift.attribute(scored.model, target=1)
    out = files / "scores"
    jaxlift.score(attr, examples, out=out, reference="dinucleotide_shuffle", shuffles=3, seed=5, progress="none")
    x = examples[0]
    key = jax.random.fold_in(jax.random.key(5), examples.keys(0, 1)[0])
    drawn = references.dinucleotide_shuffle(x, key, 3)
    np.testing.assert_allclose(zarr.open(out)["contributions"][0], attr(x[None], reference=drawn)[0], atol=1e-6)


def test_frequencies_of_letters(tmp_path):
    x, frequencies = scored.sequences(3), [0.3, 0.2, 0.1, 0.4]
    first = jaxlift.attribute(scored.letters_first, target=1, channel_axis=-2)
    jaxlift.score(first, x.transpose(0, 2, 1), out=tmp_path / "s", reference=frequencies, progress="none")
    wanted = jaxlift.attribute(scored.model, target=1)(x, reference=jnp.tile(jnp.array(frequencies), (WIDTH, 1)))
    np.testing.assert_allclose(Store(tmp_path / "s", "r").scored(0, 3), wanted, atol=1e-6)
    attr = jaxlift.attribute(scored.model, target=1)
    for wrong in ("0.5,0.5", "0.5,0.5,0.5,0.5", [1.5, -0.5, 0, 0]):
        with pytest.raises(ValueError, match="4 numbers of 0 or more with the sum 1"):
            jaxlift.score(attr, x, out=tmp_path / "other", reference=wrong, progress="none")


@pytest.mark.slow
def test_matched_regions_as_references(files, monkeypatch, capsys):
    """Against the windows that the places say, one after the other; and the same on the command line."""
    examples = windows(files, channel_axis=-2)
    matched = MatchedRegions(
        files / "genome.fa", WIDTH, per_region=2, tolerance=0.2, exclude=files / "peaks.narrowPeak"
    )
    attr = jaxlift.attribute(scored.letters_first, target=1, channel_axis=-2)
    summary = jaxlift.score(attr, examples, out=files / "s", reference=matched, progress="none")
    assert summary.scored == 4
    found = zarr.open(files / "s")["contributions"][:]
    for i in range(4):
        place = [examples.columns[name][i] for name in ("contig", "start", "end", "name")]
        texts = [CONTIGS[contig][start : start + WIDTH].upper() for contig, start in matched.places(*place)]
        references = np.array([[["ACGT".index(letter) for letter in text]] for text in texts])
        references = np.eye(4, dtype=np.float32)[references[:, 0]].transpose(0, 2, 1)
        np.testing.assert_allclose(found[i], attr(examples[i][None], reference=references)[0], atol=2e-6)
    with pytest.raises(ValueError, match="matched regions of 40 positions are references of"):
        jaxlift.score(attr, scored.sequences(3).transpose(0, 2, 1), out=files / "t", reference=matched)
    monkeypatch.chdir(files)
    monkeypatch.syspath_prepend(str(scored.ROOT / "tests"))
    run = ["score", "scored:model", "genome.fa", "--target", "1", "--reference", "gc_matched", "--shuffles", "30"]
    assert main([*run, "--regions", "peaks.narrowPeak", "--width", "40", "--out", "u"]) == 3
    assert "fewer than the 30 that are wanted" in capsys.readouterr().err
    assert main([*run, "--out", "v"]) == 2
    assert "give --regions." in capsys.readouterr().err


def test_lines_that_are_no_narrow_peaks(tmp_path):
    """A tenth of twelve columns is the number of blocks; a byte-order mark is no part of a name."""
    path = tmp_path / "x.bed"
    path.write_bytes(b"\xef\xbb\xbftrack1\t50\t150\tg1\t0\t+\t50\t150\t0\t2\t10,10\t0,90\r\nbrowserA 5 15\n")
    regions = read_regions(path)
    assert [*regions.contig] == ["track1", "browserA"]
    assert regions.centre.tolist() == [100, 10]
    assert regions.summit.tolist() == [-1, -1]


def test_files_beside_a_store(files, monkeypatch):
    """They are named after it, and nothing that a run reads is written over."""
    attr = jaxlift.attribute(scored.model, target=1)
    for name in ("fold.1", "fold.2", "fold.zarr"):
        jaxlift.score(attr, windows(files), out=files / name, reference="zeros", progress="none")
    assert {path.name for path in files.glob("*.kept.bed")} == {"fold.1.kept.bed", "fold.2.kept.bed", "fold.kept.bed"}
    before = (files / "fold.kept.bed").read_text()
    with pytest.raises(ValueError, match=r"fold\.kept\.bed would be written over, and this run reads it"):
        jaxlift.score(attr, windows(files, "fold.kept.bed"), out=files / "fold.zarr", reference="zeros", overwrite=True)
    assert (files / "fold.kept.bed").read_text() == before
    assert (files / "fold.zarr").exists()


@pytest.mark.parametrize("change", [lambda text: text[:1] + "x" + text[1:], lambda text: text[:-30], lambda t: t[20:]])
def test_an_index_of_another_file(files, change):
    windows(files)
    path = files / "genome.fa"
    path.write_text(change(path.read_text()))
    os.utime(path, (1, 1))  # as a copy that keeps its time has it, which pyfaidx goes by
    with pytest.raises(ValueError, match=r"genome\.fa\.fai is the index of another file"):
        windows(files)


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_an_index_of_this_file(tmp_path, ending):
    """With line ends of both kinds, a last line without one, and descriptions."""
    lines = [">a", "ACGTA", "CC", f">b {'long ' * 30}", "GGGTT", "TTTAA"]
    (tmp_path / "x.fa").write_bytes(((ending or "\n").join(lines) + ending).encode())
    for _ in range(2):
        found = Windows(tmp_path / "x.fa", Regions(["a", "b"], [3, 5], [7, 9]), 4)
        assert [letters_of(found[i]).tobytes() for i in range(2)] == [b"TACC", b"TTTA"]


def test_a_bgzipped_genome(files):
    pysam.tabix_compress(str(files / "genome.fa"), str(files / "packed.fa.gz"))
    packed = Windows(files / "packed.fa.gz", files / "peaks.narrowPeak", WIDTH)
    np.testing.assert_array_equal(packed.read(0, 4).values, windows(files).read(0, 4).values)


def test_all_targets_by_number(files):
    attr = jaxlift.attribute(scored.model, target="all")
    jaxlift.score(attr, windows(files), out=files / "s", reference="zeros", progress="none")
    store = Store(files / "s", "r")
    assert store.targets == ("0", "1", "2")
    x = windows(files).read(0, 4).values
    wanted = jaxlift.attribute(scored.model, target=2)(x, reference=jnp.zeros((WIDTH, 4)))
    np.testing.assert_allclose(store.scored(0, 4, "2"), wanted, atol=1e-6)
    assert store.one_hot(0, 4).shape == (4, WIDTH, 4)


def test_labels_out_of_range(tmp_path):
    attr = jaxlift.attribute(scored.model, target=np.array([0, 3]))
    with pytest.raises(ValueError, match=r"targets must be between 0 and 2, .* but they are between 0 and 3"):
        jaxlift.score(attr, scored.sequences(2), out=tmp_path / "s", reference="zeros")
