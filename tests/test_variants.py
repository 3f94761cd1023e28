"""Variants: both alleles of each, cut out of the genome by hand, and what is explained of them."""

import csv
import gzip
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pysam
import pytest
import scored
from test_scoring import compiled_once, environment, read, same

import jaxlift
from jaxlift.commands._main import main
from jaxlift.genomics import export, targets
from jaxlift.genomics._variants import COLUMNS, Alleles, variants, variants_table
from jaxlift.genomics._windows import Genome
from jaxlift.scoring import Status, StoreError
from jaxlift.scoring._examples import DamagedError, Encoding
from jaxlift.scoring._store import Store

__all__ = ["compiled_once"]
WIDTH = scored.LENGTH
HALF = WIDTH // 2
RNG = np.random.default_rng(3)
CONTIGS = {"chr1": "".join(RNG.choice([*"ACGT"], 300)), "chr2": "".join(RNG.choice([*"ACGT"], 120))}
ONE = jax.local_devices()[:1]
attr = jaxlift.attribute(scored.model, target=1)


def other(base, by=1):
    return "ACGT"[("ACGT".index(base) + by) % 4]


def at(contig, position, length=1):
    return CONTIGS[contig][position - 1 : position - 1 + length]


def record(contig, position, length, change, name):
    """Contig, position, reference allele, what becomes of it, name."""
    ref = at(contig, position, length)
    return contig, position, ref, change(ref), name


VARIANTS = [
    record("chr1", 60, 1, other, "snv"),
    record("chr1", 60, 1, lambda ref: other(ref, 2), "snv"),  # another allele of the same record
    record("chr1", 61, 3, lambda ref: "".join(map(other, ref)), "mnv"),
    record("chr1", 100, 1, lambda ref: ref + "ACGTT", "insertion"),
    record("chr1", 130, 7, lambda ref: ref[0], "deletion"),
    record("chr2", 50, 4, lambda ref: "GATTACA", None),
    record("chr2", HALF + 1, 1, other, "first"),  # whose window begins where the contig does
    record("chr2", 120 - HALF + 1, 1, other, "last"),
    record("chr2", 40, HALF, lambda ref: ref[0], "long"),
]


@pytest.fixture
def genome(tmp_path):
    """In lower case here and there, and in lines."""
    path = tmp_path / "genome.fa"
    with path.open("w") as file:
        for name, text in CONTIGS.items():
            text = text[:30] + text[30:90].lower() + text[90:]
            file.writelines([f">{name} of a test\n", *(f"{text[i : i + 50]}\n" for i in range(0, len(text), 50))])
    return path


def written(path, records=VARIANTS):
    """A file of variants, of the kind that its name says. VCF and BCF have alternatives in one record."""
    opened = gzip.open if path.suffix == ".gz" else open
    name = path.name.removesuffix(".gz")
    if name.endswith((".vcf", ".bcf")):
        by_place = {}
        for contig, position, ref, alt, name in records:
            by_place.setdefault((contig, position, name or ".", ref), []).append(alt)
        plain = path if path.suffix == ".vcf" else path.with_suffix(".plain.vcf")
        with plain.open("w") as file:
            print("##fileformat=VCFv4.2", file=file)
            for contig, text in CONTIGS.items():
                print(f"##contig=<ID={contig},length={len(text)}>", file=file)
            print("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", sep="\t", file=file)
            for place, alts in by_place.items():
                print(*place, ",".join(alts), ".", ".", ".", sep="\t", file=file)
        if path.suffix == ".gz":
            pysam.tabix_compress(str(plain), str(path), force=True)
        if path.suffix == ".bcf":
            with pysam.VariantFile(str(plain)) as read, pysam.VariantFile(str(path), "wb", header=read.header) as file:
                for each in read:
                    file.write(each)
    elif name.endswith(".tsv"):
        with opened(path, "wt") as file:
            for contig, position, ref, alt, name in records:
                print(contig, position, ref, alt, name or ".", sep="\t", file=file)
    else:
        with opened(path, "wt") as file:
            for contig, position, ref, alt, name in records:
                print(contig, position - 1, position - 1 + len(ref), ref, alt, name or ".", sep="\t", file=file)
    return path


def one_hot(text, unknown=0.0):
    return np.array([[unknown if base == "N" else base == letter for letter in "ACGT"] for base in text], np.float32)


def by_hand(records=VARIANTS, contigs=CONTIGS):
    """Alternative and reference allele of each in its window, `(N, WIDTH, 4)`."""
    pairs = []
    for contig, position, ref, alt, _ in records:
        text = contigs[contig]
        before, after = text[position - 1 - HALF : position - 1], text[position - 1 + len(ref) :]
        pairs.append([one_hot((before + allele + after)[:WIDTH]) for allele in (alt, ref)])
    alt, ref = np.array(pairs).swapaxes(0, 1)
    return alt, ref


def interleaved(first, second):
    return np.stack([first, second], 1).reshape(-1, *np.shape(first)[1:])


def run(genome, vcf, out, **options):
    options = {"width": WIDTH, "batch_size": 4, "devices": ONE, "progress": "none"} | options
    return variants(options.pop("attr", attr), genome, vcf, out=out, **options)


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("name", ["v.vcf", "v.vcf.gz", "v.bcf", "v.tsv", "v.tsv.gz", "v.bed", "v.bed.gz"])
def test_alleles_from(name, genome, tmp_path):
    """Every kind of file, every kind of variant: the windows, the scores and what they sum to."""
    found = run(genome, written(tmp_path / name), tmp_path / "s.zarr", tsv=tmp_path / "s.tsv")
    assert (found.kept, found.refused, found.scores.scored) == (len(VARIANTS), {}, 2 * len(VARIANTS))
    assert not (tmp_path / "s.refused.tsv").exists()
    alt, ref = by_hand()
    x, reference = interleaved(alt, ref), interleaved(ref, alt)
    store = Store(tmp_path / "s.zarr", "r")
    np.testing.assert_array_equal(store.one_hot(0, store.count), x)
    explain = jax.jit(jaxlift.attribute(scored.model, target=1, pairing="paired", full=True))
    wanted = explain(jnp.asarray(x), reference=jnp.asarray(reference))
    np.testing.assert_allclose(store.scored(0, store.count), wanted.scores, atol=1e-6)
    effect = np.asarray(scored.model(alt) - scored.model(ref))[:, 1]
    sums = store.scored(0, store.count).sum((1, 2))
    np.testing.assert_allclose(sums[::2], effect, atol=1e-5)
    np.testing.assert_allclose(sums[1::2], -effect, atol=1e-5)
    for row, given, change in zip(table(tmp_path / "s.tsv"), VARIANTS, effect, strict=True):
        contig, position, *alleles, name = given
        name = name or f"{contig}:{position}:{':'.join(alleles)}"
        assert [row[column] for column in COLUMNS] == [contig, str(position), *alleles, name]
        assert row["status"] == "scored"
        assert float(row["effect"]) == pytest.approx(change, abs=1e-5)
        assert max(abs(float(row[delta])) for delta in ("delta", "delta_reversed")) < 1e-5


def test_columns(genome, tmp_path):
    run(genome, written(tmp_path / "v.bcf"), tmp_path / "s")
    columns = Store(tmp_path / "s", "r").columns
    assert columns["explained"].tolist() == ["alt", "ref"] * len(VARIANTS)
    assert columns["name"].tolist()[:2] == ["snv_alt", "snv_ref"]
    assert set(columns["strand"]) == {"+"}
    for i, (contig, position, ref, alt, _) in enumerate(VARIANTS):
        for row in (2 * i, 2 * i + 1):
            names = ("contig", "position", "ref", "alt", "summit", "start")
            wanted = (contig, position, ref, alt, position - 1, position - 1 - HALF)
            assert tuple(columns[name][row] for name in names) == wanted
        assert columns["end"][2 * i + 1] == columns["start"][2 * i] + WIDTH
        # What the genome has in the window of the alternative, but for the allele.
        end = columns["end"][2 * i]
        after = CONTIGS[contig][position - 1 + len(ref) : end]
        assert HALF + len(alt) + len(after) == WIDTH


def test_layout_and_unknown_bases(genome, tmp_path):
    contigs = CONTIGS | {"chr1": CONTIGS["chr1"][:70] + "NN" + CONTIGS["chr1"][72:]}
    genome.write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
    first = VARIANTS[:3]
    alt, _ = by_hand(first, contigs)
    assert not alt.sum(2).all()
    vcf = written(tmp_path / "v.bcf", first)
    run(genome, vcf, tmp_path / "s")
    across = jaxlift.attribute(scored.letters_first, target=1, channel_axis=-2)
    run(genome, vcf, tmp_path / "t", attr=across)
    scores, turned = (read(tmp_path / name)["contributions"] for name in "st")
    assert turned.shape == (6, 4, WIDTH)
    np.testing.assert_allclose(turned.swapaxes(1, 2), scores, atol=1e-6)
    run(genome, vcf, tmp_path / "u", unknown="quarters")
    wanted = scored.model(np.where(alt.sum(2, keepdims=True) == 0, np.float32(0.25), alt))[:, 1]
    np.testing.assert_allclose(read(tmp_path / "u")["output"][::2], wanted, atol=1e-6)


def test_a_motif_that_is_broken_and_one_that_arises(tmp_path):
    """Of a model that counts a motif, what a base contributes is known."""
    motif, text = "TGACTCA", "A" * 40 + "TGACTCA" + "C" * 60
    (tmp_path / "g.fa").write_text(f">chr1\n{text}\n")
    kernel = jnp.asarray(one_hot(motif))[:, :, None]

    def count(x):
        h = jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return jax.nn.relu(h - (len(motif) - 1)).sum((1, 2))

    records = [
        ("chr1", 44, "C", "G", "broken"),
        ("chr1", 44, "C", "CC", "split"),
        ("chr1", 60, "C", motif, "arises"),
    ]
    run(tmp_path / "g.fa", written(tmp_path / "v.tsv", records), tmp_path / "s", attr=jaxlift.attribute(count))
    store = Store(tmp_path / "s", "r")
    scores = store.scored(0, 6)
    np.testing.assert_allclose(scores.sum((1, 2)), [-1, 1, -1, 1, 1, -1], atol=1e-6)
    np.testing.assert_allclose(scores[0].sum(1), np.where(np.arange(WIDTH) == HALF, -1, 0), atol=1e-6)
    assert not scores[:, :HALF].any()  # before the variant the alleles are the same
    inserted = scores[4].sum(1)
    np.testing.assert_allclose(inserted[HALF : HALF + len(motif)].sum(), 1, atol=1e-6)


REFUSED = [
    ("chr1", 60, at("chr1", 60), "<DEL>", "symbolic allele", "'<DEL>' is not of the letters ACGT"),
    ("chr1", 61, at("chr1", 61), "*", "allele deleted by another variant", "'*' is not of the letters ACGT"),
    ("chr1", 62, at("chr1", 62), f"{at('chr1', 62)}[chr2:50[", "breakend", "is not of the letters ACGT"),
    ("chr1", 63, at("chr1", 63), ".", "no alternative allele", "'.' is not of the letters ACGT"),
    ("chr1", 64, at("chr1", 64), "R", "unknown letters in an allele", "'R' is not of the letters ACGT"),
    ("1", 65, "A", "C", "no such contig", "the genome has no '1', but 'chr1': rename the variants' contigs"),
    ("chr1", HALF, at("chr1", HALF), other(at("chr1", HALF)), "window leaves its contig", "it has positions 0 to 39"),
    (
        "chr2",
        102,
        at("chr2", 102),
        other(at("chr2", 102)),
        "window leaves its contig",
        "to 121, and the contig 1 to 120",
    ),
    ("chr2", 101, at("chr2", 101, 2), at("chr2", 101), "window leaves its contig", "to 121, and the contig 1 to 120"),
    (
        "chr1",
        70,
        at("chr1", 70),
        "A" * (HALF + 1),
        "allele too long",
        "it has 21 letters, and a window 20 from its mid",
    ),
    ("chr1", 80, other(at("chr1", 80)), at("chr1", 80), "another reference allele", "are the alleles swapped?"),
    (
        "chr1",
        81,
        other(at("chr1", 81)),
        other(at("chr1", 81), 2),
        "another reference allele",
        f"expected {other(at('chr1', 81))} at chr1:81, but the genome has {at('chr1', 81)}",
    ),
]


def test_what_is_refused_is_listed(genome, tmp_path):
    records = [VARIANTS[0], *((*refused[:4], f"r{i}") for i, refused in enumerate(REFUSED)), VARIANTS[4]]
    vcf = written(tmp_path / "v.vcf", records)
    found = run(genome, vcf, tmp_path / "s.zarr")
    assert found.kept == 2
    assert sum(found.refused.values()) == len(REFUSED)
    assert found.refused["window leaves its contig"] == 3
    said = str(found)
    assert said.startswith("2 variants\n4 of 4 examples scored")
    assert "12 refused (1 symbolic allele, " in said
    assert f"listed in {tmp_path / 's.refused.tsv'}" in said
    for i, (row, (contig, position, ref, alt, reason, detail)) in enumerate(
        zip(table(tmp_path / "s.refused.tsv"), REFUSED, strict=True)
    ):
        assert [row[column] for column in COLUMNS] == [contig, str(position), ref, alt, f"r{i}"]
        assert row["reason"].startswith(f"{reason}: ")
        assert detail in row["reason"]
    alt, ref = by_hand([VARIANTS[0], VARIANTS[4]])
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr", "r").one_hot(0, 4), interleaved(alt, ref))

    run(genome, written(tmp_path / "w.vcf"), tmp_path / "s.zarr", overwrite=True)
    assert not (tmp_path / "s.refused.tsv").exists()


class TestErrors:
    def test_nothing_to_score(self, genome, tmp_path):
        bad = written(tmp_path / "v.vcf", [(*refused[:4], "r") for refused in REFUSED[5:7]])
        with pytest.raises(
            ValueError, match=r"no variant can be scored, 2 refused \(1 no such contig, 1 window .* but 'chr1'"
        ):
            run(genome, bad, tmp_path / "s")
        with pytest.raises(ValueError, match="there are no variants"):
            run(genome, written(tmp_path / "e.vcf", []), tmp_path / "s")
        assert not (tmp_path / "s").exists()

    def test_damaged_files(self, genome, tmp_path):
        for name in ("v.vcf.gz", "v.bcf"):
            path = written(tmp_path / name)
            path.write_bytes(path.read_bytes()[:-28])  # the block that marks the end
            with pytest.raises(DamagedError, match=f"{name} is damaged, cut short"):
                run(genome, path, tmp_path / "s")
        path = written(tmp_path / "v.vcf")
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:-2], "chr1\there\t.\tA\tC\t.\t.\t.", *lines[-2:]]))
        with pytest.raises(DamagedError, match="what follows chr2:21 is no record"):
            run(genome, path, tmp_path / "s")
        zipped = tmp_path / "z.vcf.gz"
        zipped.write_bytes(gzip.compress(written(tmp_path / "v.vcf").read_bytes()))
        with pytest.raises(DamagedError, match="compress it with bgzip"):
            run(genome, zipped, tmp_path / "s")

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("v.vcf", "chr1\t5\t.\tA\tC\n", "no VCF or BCF file with its header"),
            ("v.tsv", "chr1\t5\tA\tC\n", "line 1: expected chr, pos, allele1, allele2, variant_id, separated by tabs"),
            ("v.tsv", "chr1\t60\tA\tC\ta\nchr1 60 A C a\n", "line 2: expected chr, pos, allele1"),
            ("v.bed", "chr1\t5\tA\tC\ta\tb\n\n", None),
            ("v.bed", "chr1\t5\t6\tA\tC\n", "line 1: expected contig, start, end, allele1, allele2, variant_id"),
            ("v.txt.bz2", "", "expected variants as .vcf, .vcf.gz, .bcf, .tsv"),
        ],
    )
    def test_other_files(self, genome, tmp_path, name, text, said):
        (tmp_path / name).write_text(text)
        with pytest.raises((ValueError, DamagedError), match=said):
            run(genome, tmp_path / name, tmp_path / "s")

    def test_arguments(self, genome, tmp_path):
        vcf = written(tmp_path / "s.refused.tsv")
        with pytest.raises(FileNotFoundError, match="there is no file none"):
            run(genome, "none.vcf", tmp_path / "s")
        with pytest.raises(ValueError, match="width=0 must be an int"):
            run(genome, vcf, tmp_path / "t", width=0)
        for out, tsv in (("s", None), ("t", vcf), ("t", genome)):
            with pytest.raises(ValueError, match="would be written over, and this run reads it"):
                run(genome, vcf, tmp_path / out, tsv=tsv)
        with pytest.raises(ValueError, match="leave out pairing='shared'"):
            run(genome, vcf, tmp_path / "t", attr=jaxlift.attribute(scored.model, target=1, pairing="shared"))
        jaxlift.score(
            attr, scored.sequences(4), reference="zeros", out=tmp_path / "x", batch_size=4, devices=ONE, progress="none"
        )
        with pytest.raises(ValueError, match="has no variants: expected a store that `jaxlift variants` made"):
            variants_table(tmp_path / "x", tmp_path / "x.tsv")

    def test_other_variants_than_the_stores(self, genome, tmp_path):
        """Whichever of them differ: all are in the checksum."""
        run(genome, written(tmp_path / "v.bcf"), tmp_path / "s")
        changed = [*VARIANTS[:3], (*VARIANTS[3][:3], VARIANTS[3][3] + "A", "insertion"), *VARIANTS[4:]]
        with pytest.raises(StoreError, match="the values of alt differ"):
            run(genome, written(tmp_path / "w.bcf", changed), tmp_path / "s")


class TestTable:
    def test_log_counts(self, genome, tmp_path):
        vcf = written(tmp_path / "v.tsv")
        run(genome, vcf, tmp_path / "s", tsv=tmp_path / "new" / "s.tsv", log_counts=True)
        logs = [np.asarray(scored.model(x)[:, 1], np.float64) for x in by_hand()]
        rows = table(tmp_path / "new" / "s.tsv")
        wanted = {
            "allele1_pred_counts": np.exp(logs[1]),
            "allele2_pred_counts": np.exp(logs[0]),
            "logfc": np.log2(np.exp(logs[0]) / np.exp(logs[1])),
            "abs_logfc": np.abs(np.log2(np.exp(logs[0]) / np.exp(logs[1]))),
        }
        for name, values in wanted.items():
            np.testing.assert_allclose([float(row[name]) for row in rows], values, atol=1e-5)

    def test_several_targets(self, genome, tmp_path):
        both = targets.named(counts=1, rest=targets.weighted(jnp.array([1.0, 0.0, 2.0])))
        attribution = jaxlift.attribute(scored.model, target=both)
        options = {"attr": attribution, "tsv": tmp_path / "s.tsv"}
        run(genome, written(tmp_path / "v.tsv"), tmp_path / "s", log_counts=["counts"], **options)
        rows = table(tmp_path / "s.tsv")
        assert "logfc.counts" in rows[0]
        assert "logfc.rest" not in rows[0]
        alt, ref = map(scored.model, by_hand())
        for name, weights in (("counts", [0, 1, 0]), ("rest", [1, 0, 2])):
            effects = [float(row[f"effect.{name}"]) for row in rows]
            np.testing.assert_allclose(effects, (alt - ref) @ np.array(weights), atol=1e-5)
        with pytest.raises(ValueError, match="has no target count; it has counts, rest"):
            variants_table(tmp_path / "s", tmp_path / "t.tsv", log_counts=["count"])

    def test_is_what_this_reads_too(self, genome, tmp_path):
        """With an empty allele, which tables may have, and VCF not."""
        ref = at("chr1", 70, 2)
        records = [VARIANTS[0], ("chr1", 70, ref, "-", "gone"), ("chr1", 70, "-", "ACC", "came")]
        found = run(genome, written(tmp_path / "v.tsv", records), tmp_path / "s", tsv=tmp_path / "s.tsv")
        assert found.kept == 3
        alt, ref = by_hand([(*r[:2], *(allele.replace("-", "") for allele in r[2:4]), r[4]) for r in records])
        np.testing.assert_array_equal(Store(tmp_path / "s", "r").one_hot(0, 6), interleaved(alt, ref))
        run(genome, tmp_path / "s.tsv", tmp_path / "t", tsv=tmp_path / "t.tsv")
        assert table(tmp_path / "t.tsv") == table(tmp_path / "s.tsv")
        same(tmp_path / "s", tmp_path / "t")

    def test_of_malformed_examples(self, genome, tmp_path):
        contigs = CONTIGS | {"chr1": CONTIGS["chr1"][:70] + "R" + CONTIGS["chr1"][71:]}
        genome.write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
        found = run(genome, written(tmp_path / "v.tsv"), tmp_path / "s", tsv=tmp_path / "s.tsv", ambiguous="refuse")
        assert set(found.scores.bad.values()) == {Status.MALFORMED}
        rows = table(tmp_path / "s.tsv")
        assert [row["status"] for row in rows[:4]] == ["malformed"] * 3 + ["scored"]
        assert rows[0]["effect"] == "nan"


def test_is_no_track(genome, tmp_path):
    """Both alleles are at the same place, where a track has one value."""
    variants(attr, genome, written(tmp_path / "v.vcf", VARIANTS[:2]), out=tmp_path / "s", width=WIDTH, progress="none")
    with pytest.raises(ValueError, match="both alleles of each variant, at the same place"):
        export(tmp_path / "s", bedgraph=tmp_path / "s.bedgraph")


def test_behind_an_indel_a_picture_has_no_coordinates(genome, tmp_path, capsys):
    """Of the deletion's allele positions behind it are not the genome's; of the genome's own they are."""
    deletion = next(each for each in VARIANTS if each[4] == "deletion")
    variants(attr, genome, written(tmp_path / "v.vcf", [deletion]), out=tmp_path / "s", width=WIDTH, progress="none")
    plot = ["plot", str(tmp_path / "s"), "--positions", "chr1:125-135", "--out", str(tmp_path / "s.png")]
    assert main([*plot, "1"]) == 0
    assert main([*plot, "0"]) == 2
    assert "this store has no coordinates" in capsys.readouterr().err


def test_interrupted(genome, tmp_path, monkeypatch):
    """What was finished is kept, the table says what is not, and the same call comes to the same bits."""
    vcf = written(tmp_path / "v.tsv", many(60))
    run(genome, vcf, tmp_path / "whole", batch_size=2, tsv=tmp_path / "whole.tsv")
    wrote, put = [], Store.write

    def failing(store, chunk, rows):
        if len(wrote) == 2:
            raise OSError("the disk is full")
        wrote.append(chunk)
        put(store, chunk, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", failing)
        with pytest.raises(OSError, match="the disk is full"):
            run(genome, vcf, tmp_path / "s", batch_size=2, tsv=tmp_path / "s.tsv")
    assert not (tmp_path / "s.tsv").exists()
    variants_table(tmp_path / "s", tmp_path / "part.tsv")
    states = [row["status"] for row in table(tmp_path / "part.tsv")]
    assert {*states} == {"scored", "unfinished"}
    found = run(genome, vcf, tmp_path / "s", batch_size=2, tsv=tmp_path / "s.tsv")
    assert found.scores.computed == 2 * states.count("unfinished")
    same(tmp_path / "s", tmp_path / "whole")
    assert (tmp_path / "s.tsv").read_text() == (tmp_path / "whole.tsv").read_text()


def many(count):
    """So many variants, of all kinds."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        contig, position = "chr1", int(rng.integers(30, 250))
        ref = at(contig, position, int(rng.integers(1, 6)))
        alt = "".join(rng.choice([*"ACGT"], int(rng.integers(1, 6))))
        made.append((contig, position, ref, alt if alt != ref else f"{alt}A", f"v{i}"))
    return made


def test_of_a_large_set_the_columns_are_held(genome, tmp_path):
    """One read takes as many windows as are asked for, from wherever they are."""
    records = many(40)
    alleles = Alleles(Genome(genome), written(tmp_path / "v.tsv", records), WIDTH, Encoding())
    x = interleaved(*by_hand(records))
    for start, stop in ((0, 80), (3, 4), (7, 12), (79, 80), (5, 5)):
        np.testing.assert_array_equal(alleles.rows(start, stop), x[start:stop])
    np.testing.assert_array_equal(alleles.others().rows(0, 80), interleaved(*by_hand(records)[::-1]))
    held = [value for value in vars(alleles).values() if isinstance(value, np.ndarray)]
    assert not held


@pytest.fixture
def command(genome, tmp_path, typed):
    written(tmp_path / "v.vcf.gz", [*VARIANTS, (*REFUSED[0][:4], "sv")])
    return typed


class TestCommand:
    GIVEN = f"variants scored:model genome.fa --vcf v.vcf.gz --width {WIDTH} --batch-size 4"

    def test_store_and_table(self, command):
        code, out, _ = command(f"{self.GIVEN} --target 1 --log-counts")
        assert code == 0
        assert "9 variants\n" in out
        assert "1 refused (1 symbolic allele), listed in " in out
        assert "18 of 18 examples scored" in out
        assert "table in variants.effects.tsv" in out
        rows = table("variants.effects.tsv")
        alt, ref = (scored.model(x)[:, 1] for x in by_hand())
        np.testing.assert_allclose([float(row["effect"]) for row in rows], alt - ref, atol=1e-5)
        np.testing.assert_allclose([float(row["logfc"]) for row in rows], (alt - ref) / np.log(2), atol=1e-5)
        code, out, _ = command(f"{self.GIVEN} --target 1 --log-counts")
        assert (code, "18 of 18 examples scored, 0 by this run" in out) == (0, True)

    def test_quiet_and_other_paths(self, command):
        assert command(f"{self.GIVEN} --target scored:mean_output --out a/b --tsv c.tsv --quiet") == (0, "", "")
        assert "logfc" not in table("c.tsv")[0]
        assert table("a/b.refused.tsv")[0]["variant_id"] == "sv"

    def test_log_counts_by_name(self, command):
        assert command(f"{self.GIVEN} --target counts --quiet")[0] == 0
        assert "logfc" in table("variants.effects.tsv")[0]

    def test_errors(self, command):
        code, _, err = command(f"{self.GIVEN} --target 1 --rule none")
        assert code == 2
        assert "rule" in err
        code, _, err = command(self.GIVEN.replace("v.vcf.gz", "w.vcf"))
        assert (code, "there is no file w.vcf" in err) == (2, True)

    @pytest.mark.slow
    def test_killed(self, command, genome, tmp_path):
        """In the middle of the work; then the same bits as if nothing had happened."""
        written(tmp_path / "many.tsv", many(3000))
        given = [*self.GIVEN.replace("v.vcf.gz", "many.tsv").split(), "--target", "1", "--quiet"]
        assert command(f"{' '.join(given)} --out whole")[0] == 0
        code = f"import sys; from jaxlift.commands._main import main; sys.exit(main({[*given, '--out', 'killed']!r}))"
        for attempt in range(2):
            with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment()) as process:
                chunks = tmp_path / "killed" / "checksum"
                while attempt == 0 and len([*chunks.glob("c.*")]) < 3:
                    assert process.poll() is None
                    time.sleep(0.001)
                if attempt == 0:
                    process.send_signal(signal.SIGKILL)
            assert process.returncode == (-signal.SIGKILL if attempt == 0 else 0)
            done = (read(tmp_path / "killed")["status"] == Status.SCORED).mean()
            assert 0 < done < 1 if attempt == 0 else done == 1
        same(tmp_path / "killed", tmp_path / "whole")
        assert (tmp_path / "killed.effects.tsv").read_text() == (tmp_path / "whole.effects.tsv").read_text()
