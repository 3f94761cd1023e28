"""Exports: what other tools and other readers find in the files is what the store has, at the places it has it for."""

import errno
import gzip
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pyBigWig
import pytest
import scored
import zarr
from test_scoring import command

import jaxlift
from jaxlift.commands._main import main
from jaxlift.genomics import Regions, Windows, _export, read_regions
from jaxlift.genomics._export import _joined, _pieces, export
from jaxlift.scoring import _score
from jaxlift.scoring._store import Store, StoreError, checksum_of

WIDTH = 40
LENGTHS = {"chr2": 300, "chr1": 600, "chr10": 50}  # in an order that is neither that of names nor that of numbers
RNG = np.random.default_rng(7)
GENOME = {name: "".join(RNG.choice([*"ACGT"], length)) for name, length in LENGTHS.items()}
GENOME["chr1"] = GENOME["chr1"][:120] + "NNN" + GENOME["chr1"][123:500] + "R" + GENOME["chr1"][501:]
PLACES = [  # contig, summit, strand: in no order; some overlap, two are equal, one has N, one a letter that is refused
    ("chr1", 300, "+"),
    ("chr1", 130, "."),
    ("chr2", 100, "-"),
    ("chr2", 113, "+"),
    ("chr1", 321, "-"),
    ("chr1", 505, "+"),
    ("chr10", 25, "+"),
    ("chr1", 307, "+"),
    ("chr2", 139, "."),
    ("chr1", 580, "-"),
    ("chr2", 113, "+"),
    ("chr1", 321, "-"),
]
KEPT = [i for i in range(len(PLACES)) if i != 5]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in GENOME.items()))
    return path


def regions():
    contig, summit, strand = map(np.array, zip(*PLACES, strict=True))
    return Regions(contig, summit - 5, summit + 8, [f"peak{i}" for i in range(len(PLACES))], strand, summit)


def score(fasta, out, model=scored.model, width=WIDTH, channel_axis=-1, **options):
    options = {"target": 1, "output": "hypothetical"} | options
    windows = Windows(fasta, regions(), width, channel_axis=channel_axis, ambiguous="refuse")
    attr = jaxlift.attribute(model, channel_axis=channel_axis, **options)
    jaxlift.score(
        attr, windows, out=out, reference="zeros", batch_size=4, devices=jax.local_devices()[:1], progress="none"
    )
    return out


@pytest.fixture(scope="module")
def store(fasta, tmp_path_factory):
    """Hypothetical scores in three chunks; read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_score, "BATCHES", 1)
        path = score(fasta, tmp_path_factory.mktemp("store") / "hypothetical.zarr")
    assert zarr.open_group(path)["status"].chunks == (4,)
    return path


@pytest.fixture(scope="module")
def contributions(fasta, tmp_path_factory):
    return score(fasta, tmp_path_factory.mktemp("store") / "contributions.zarr", output="contributions")


def rows(path):
    """What the rows must be, example by example: one-hot and hypothetical scores (N, 4, L), as the genome runs."""
    scores = zarr.open_group(path, mode="r")["hypothetical"][...]
    one_hot, hypothetical = [], []
    for i in KEPT:
        contig, summit, strand = PLACES[i]
        text = GENOME[contig][summit - WIDTH // 2 : summit - WIDTH // 2 + WIDTH]
        one_hot.append([[int(letter == base) for letter in text] for base in "ACGT"])
        turned = scores[i][::-1, ::-1] if strand == "-" else scores[i]
        hypothetical.append(turned.T)
    return np.array(one_hot, np.int8), np.array(hypothetical)


def track(values, places, width=WIDTH):
    """Each contig's bases, NaN where there is none: of the windows that have it the one with the nearest summit.

    Args:
        values: of each window's bases.
        places: contig, start and summit of each window, in the order in which later ones go before.
    """
    found = {name: np.full(length, np.nan, np.float32) for name, length in LENGTHS.items()}
    for contig, bases in found.items():
        for base in range(len(bases)):
            best = np.inf
            for i, (name, start, summit) in enumerate(places):
                distance = abs(base + 0.5 - summit)
                if name == contig and start <= base < start + width and distance <= best:
                    best, bases[base] = distance, values[i][base - start]
    return found


def opened(path):
    """A bigWig file, by a reader that didn't write it."""
    return pytest.importorskip("pybigtools", reason="has no wheel for Python 3.14").open(str(path))


def as_track(path):
    """Each contig's bases in a bigWig file."""
    with opened(path) as file:
        return {name: file.values(name, fillna=np.nan) for name in LENGTHS}


def equal_tracks(found, wanted):
    for name in LENGTHS:
        np.testing.assert_array_equal(found[name].astype(np.float32), wanted[name])


def sorted_windows(values):
    """The windows by contig and start, as `track` takes them."""
    places = [(PLACES[i][0], PLACES[i][1] - WIDTH // 2, PLACES[i][1]) for i in KEPT]
    order = sorted(range(len(places)), key=lambda i: places[i][:2])
    return [values[i] for i in order], [places[i] for i in order]


def read_bedgraph(text):
    found = {name: np.full(length, np.nan, np.float32) for name, length in LENGTHS.items()}
    for line in text.splitlines():
        contig, start, end, value = line.split("\t")
        assert np.isnan(found[contig][int(start) : int(end)]).all()
        found[contig][int(start) : int(end)] = np.float32(value)
    return found


def test_rows_are_the_examples_with_scores(store, tmp_path):
    one_hot, hypothetical = rows(store)
    exported = export(store, h5=tmp_path / "s.h5", npz=tmp_path / "s", narrowpeak=tmp_path / "s.narrowPeak")
    with h5py.File(tmp_path / "s.h5") as file:
        raw, shap, projected = (file[f"{name}/seq"][...] for name in ("raw", "shap", "projected_shap"))
    assert (raw.dtype, shap.dtype, projected.dtype) == (np.int8, np.float16, np.float16)
    np.testing.assert_array_equal(raw, one_hot)
    np.testing.assert_array_equal(shap, hypothetical.astype(np.float16))
    np.testing.assert_array_equal(projected, hypothetical.astype(np.float16) * one_hot)
    for name, values in (("ohe", raw), ("hyp", shap)):
        with np.load(tmp_path / f"s.{name}.npz") as file:
            assert file.files == ["arr_0"]
            assert file["arr_0"].dtype == values.dtype
            np.testing.assert_array_equal(file["arr_0"], values)
    assert sorted(exported.files) == sorted(tmp_path.iterdir())
    assert (exported.written, exported.left_out, exported.dtype) == (len(KEPT), {"malformed": 1}, "float16")


def test_narrowpeak_gives_the_same_windows(store, fasta, tmp_path):
    export(store, narrowpeak=tmp_path / "s.narrowPeak")
    lines = [line.split("\t") for line in (tmp_path / "s.narrowPeak").read_text().splitlines()]
    assert [len(line) for line in lines] == [10] * len(KEPT)
    again = Windows(fasta, read_regions(tmp_path / "s.narrowPeak"), WIDTH).columns
    first = Windows(fasta, regions()[np.array(KEPT)], WIDTH).columns
    for name, column in first.items():
        assert again[name].tolist() == column.tolist(), name
    assert [line[1] for line in lines] == [str(start) for start in first["start"]]


def test_float32_where_float16_has_too_few_bits(fasta, tmp_path):
    for scale, largest in ((1e-6, "e-0"), (1e7, r"e\+0")):
        path = score(fasta, tmp_path / f"{scale}.zarr", lambda x, scale=scale: scale * scored.model(x))
        exported = export(path, h5=tmp_path / "s.h5", npz=tmp_path / "s")
        assert exported.dtype == "float32"
        with h5py.File(tmp_path / "s.h5") as file:
            np.testing.assert_array_equal(file["shap/seq"][...], rows(path)[1])
            assert np.any(file["shap/seq"][...])
        with np.load(tmp_path / "s.hyp.npz") as file:
            np.testing.assert_array_equal(file["arr_0"], rows(path)[1])
        with pytest.raises(ValueError, match=rf"float16 can't hold .* example 0, .*{largest}.*use dtype='float32'"):
            export(path, h5=tmp_path / "t.h5", dtype="float16")


def test_dtype_as_asked(store, tmp_path):
    assert export(store, h5=tmp_path / "s.h5", dtype="float32").dtype == "float32"
    with h5py.File(tmp_path / "s.h5") as file:
        np.testing.assert_array_equal(file["shap/seq"][...], rows(store)[1])
    with pytest.raises(ValueError, match="dtype='float64': expected"):
        export(store, h5=tmp_path / "s.h5", dtype="float64")


def test_bigwig_has_each_base_once(store, tmp_path):
    one_hot, hypothetical = rows(store)
    export(store, bigwig=tmp_path / "s.bw", chrom_sizes=LENGTHS)
    equal_tracks(as_track(tmp_path / "s.bw"), track(*sorted_windows((one_hot * hypothetical).sum(1))))
    with opened(tmp_path / "s.bw") as file:
        assert file.chroms() == LENGTHS


def test_windows_meet_halfway_between_their_summits(store, tmp_path):
    """ChromBPNet's rule, as it is said: windows by their starts; each ends where it and the next one meet."""
    values, places = sorted_windows((np.prod(rows(store), axis=0)).sum(1))
    wanted = {name: np.full(length, np.nan, np.float32) for name, length in LENGTHS.items()}
    end = ("", 0)
    for i, (contig, start, summit) in enumerate(places):
        begin = max(start, end[1]) if contig == end[0] else start
        stop = start + WIDTH
        if i + 1 < len(places) and places[i + 1][0] == contig and places[i + 1][1] < stop:
            stop = (summit + places[i + 1][2]) // 2
        wanted[contig][begin:stop] = values[i][begin - start : stop - start]
        end = contig, stop
    export(store, bigwig=tmp_path / "s.bw", chrom_sizes=LENGTHS)
    equal_tracks(as_track(tmp_path / "s.bw"), wanted)


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_summit_wherever_it_is(seed):
    rng = np.random.default_rng(seed)
    n, width = 12, int(rng.integers(1, 30))
    contig = rng.choice(["chr1", "chr2"], n)
    start = rng.integers(0, 60, n)
    summit = start + rng.integers(0, width, n)
    values = rng.normal(size=(n, width)).astype(np.float32)
    order = np.lexsort((start, contig))
    found = {name: np.full(length, np.nan, np.float32) for name, length in LENGTHS.items()}
    for name, begin, piece in _pieces(Regions(contig, start, start + width, summit=summit), order, values):
        assert np.isnan(found[name][begin : begin + len(piece)]).all()
        found[name][begin : begin + len(piece)] = piece
    places = list(zip(contig[order], start[order], summit[order], strict=True))
    equal_tracks(found, track(values[order], places, width))


def test_bases_that_touch_are_joined():
    """Up to a length that is passed here, and not where the next contig begins."""
    n, width = 900, 100
    values = np.arange((n + 1) * width, dtype=np.float32).reshape(n + 1, width)
    start = np.arange(n + 1) * width
    windows = Regions(np.array(["chr1"] * n + ["chr2"]), start, start + width)
    runs = list(_joined(_pieces(windows, np.arange(n + 1), values)))
    assert [(contig, begin) for contig, begin, _ in runs] == [("chr1", 0), ("chr1", 65600), ("chr2", 90000)]
    np.testing.assert_array_equal(np.concatenate([run for _, _, run in runs]), values.ravel())


def test_without_summits_their_centres(store, tmp_path):
    shutil.copytree(store, tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr")
    meta = dict(group.attrs["jaxlift"])
    group.attrs["jaxlift"] = meta | {"columns": [name for name in meta["columns"] if name != "summit"]}
    for path, name in ((store, "with"), (tmp_path / "s.zarr", "without")):
        track, peaks = tmp_path / f"{name}.bw", tmp_path / f"{name}.narrowPeak"
        export(path, bigwig=track, narrowpeak=peaks, chrom_sizes=LENGTHS)
    equal_tracks(as_track(tmp_path / "without.bw"), as_track(tmp_path / "with.bw"))
    assert (tmp_path / "without.narrowPeak").read_text() == (tmp_path / "with.narrowPeak").read_text()


def test_places_must_be_those_of_the_scores(store, tmp_path):
    shutil.copytree(store, tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr")
    group["end"][1] += 1
    with pytest.raises(StoreError, match="the array end was changed or damaged"):
        export(tmp_path / "s.zarr", narrowpeak=tmp_path / "s.narrowPeak")
    meta = dict(group.attrs["jaxlift"])
    group.attrs["jaxlift"] = meta | {"kept": meta["kept"] | {"end": checksum_of(group["end"][...])}}
    with pytest.raises(ValueError, match="has 40 scores of each example, but places such as chr1:110-151"):
        export(tmp_path / "s.zarr", narrowpeak=tmp_path / "s.narrowPeak")


def test_contributions_make_the_same_track(store, contributions, tmp_path):
    export(store, bigwig=tmp_path / "h.bw", chrom_sizes=LENGTHS)
    export(contributions, bigwig=tmp_path / "c.bw", chrom_sizes=LENGTHS)
    hypothetical, others = as_track(tmp_path / "h.bw"), as_track(tmp_path / "c.bw")
    for name in LENGTHS:
        np.testing.assert_allclose(others[name], hypothetical[name], rtol=1e-4, atol=1e-7)


def test_bedgraph(store, contributions, fasta, tmp_path):
    sizes = tmp_path / "chrom.sizes"
    sizes.write_text("".join(f"{name}\t{length}\n" for name, length in LENGTHS.items()))
    export(store, bigwig=tmp_path / "s.bw", bedgraph=tmp_path / "s.bedgraph", chrom_sizes=sizes)
    text = (tmp_path / "s.bedgraph").read_text()
    equal_tracks(read_bedgraph(text), as_track(tmp_path / "s.bw"))
    assert list(dict.fromkeys(line.split("\t")[0] for line in text.splitlines())) == [*LENGTHS]
    assert "chr1\t120\t123\t0.0\n" in text  # NNN in one line
    export(store, bedgraph=tmp_path / "s.bedgraph.gz")
    named = gzip.decompress((tmp_path / "s.bedgraph.gz").read_bytes()).decode()
    assert sorted(named.splitlines()) == sorted(text.splitlines())
    assert list(dict.fromkeys(line.split("\t")[0] for line in named.splitlines())) == sorted(LENGTHS)


def test_letters_first_and_an_odd_width(fasta, tmp_path):
    width = 31
    paths = [
        score(fasta, tmp_path / "last.zarr", width=width),
        score(fasta, tmp_path / "first.zarr", scored.letters_first, width=width, channel_axis=-2),
    ]
    for path in paths:
        export(path, npz=path.with_suffix(""), bigwig=path.with_suffix(".bw"), chrom_sizes=fasta)
    for name in ("ohe", "hyp"):
        first, last = (np.load(path.with_suffix(f".{name}.npz"))["arr_0"] for path in paths)
        assert first.shape == (len(KEPT), 4, width)
        np.testing.assert_allclose(first, last, rtol=2e-3, atol=1e-6)
    assert np.load(paths[0].with_suffix(".ohe.npz"))["arr_0"][0].argmax(0).tolist() == [
        "ACGT".index(letter) for letter in GENOME["chr1"][300 - 15 : 300 + 16]
    ]
    first, last = (as_track(path.with_suffix(".bw")) for path in paths)
    for name in LENGTHS:
        np.testing.assert_allclose(first[name], last[name], rtol=1e-4, atol=1e-7)


def test_one_of_several_targets(fasta, tmp_path):
    each = jaxlift.Held(lambda y: jnp.broadcast_to(jnp.eye(3)[:2], (len(y), 2, 3)), names=("first", "second"))
    both = score(fasta, tmp_path / "both.zarr", target=each)
    alone = score(fasta, tmp_path / "second.zarr", target=1)
    export(both, npz=tmp_path / "both", target="second")
    export(alone, npz=tmp_path / "alone")
    found, wanted = (np.load(tmp_path / f"{name}.hyp.npz")["arr_0"] for name in ("both", "alone"))
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-6)
    for asked in (None, "third"):
        with pytest.raises(ValueError, match="first"):
            export(both, bigwig=tmp_path / "both.bw", chrom_sizes=LENGTHS, target=asked)
    assert not (tmp_path / "both.bw").exists()


def test_what_the_store_must_have(store, contributions, fasta, tmp_path):
    with pytest.raises(ValueError, match=r"need hypothetical scores.*has contributions.*--output hypothetical"):
        export(contributions, h5=tmp_path / "s.h5")
    multipliers = score(fasta, tmp_path / "multipliers.zarr", output="multipliers")
    with pytest.raises(ValueError, match="has multipliers: score again"):
        export(multipliers, bigwig=tmp_path / "s.bw", chrom_sizes=LENGTHS)
    export(multipliers, narrowpeak=tmp_path / "s.narrowPeak")
    attr = jaxlift.attribute(scored.model, target=1, output="hypothetical")
    jaxlift.score(attr, scored.sequences(3), out=tmp_path / "array.zarr", reference="zeros", progress="none")
    with pytest.raises(ValueError, match=r"doesn't say where in a genome.*contig, start, end.*--regions"):
        export(tmp_path / "array.zarr", bedgraph=tmp_path / "s.bedgraph")
    assert sorted(path.name for path in tmp_path.glob("s*")) == ["s.narrowPeak"]
    assert not list(tmp_path.glob(".s*"))


def test_without_places_rows_are_as_the_model_read_them(tmp_path):
    x = scored.sequences(3)
    attr = jaxlift.attribute(scored.model, target=1, output="hypothetical")
    jaxlift.score(attr, x, out=tmp_path / "array.zarr", reference="zeros", progress="none")
    export(tmp_path / "array.zarr", npz=tmp_path / "s", dtype="float32")
    np.testing.assert_array_equal(np.load(tmp_path / "s.ohe.npz")["arr_0"], x.transpose(0, 2, 1))
    wanted = jax.jit(attr)(jnp.asarray(x), reference=jnp.zeros(x.shape[1:])).transpose(0, 2, 1)
    np.testing.assert_allclose(np.load(tmp_path / "s.hyp.npz")["arr_0"], wanted, rtol=1e-5, atol=1e-6)


def test_places_must_be_in_the_contigs(store, tmp_path):
    with pytest.raises(ValueError, match=r"chrom_sizes has no chr10, chr2, .*it has chr1, chrX"):
        export(store, bigwig=tmp_path / "s.bw", chrom_sizes={"chr1": 600, "chrX": 1})
    with pytest.raises(ValueError, match=r"chr1 has 599 bases .*window there of 560-600 \(1 end"):
        export(store, bigwig=tmp_path / "s.bw", chrom_sizes=LENGTHS | {"chr1": 599})
    with pytest.raises(ValueError, match="needs the contigs' lengths: give chrom_sizes"):
        export(store, bigwig=tmp_path / "s.bw")
    for content, message in (
        ("", "is empty"),
        ("chr1\t600\nchr2\n", "line 2: expected a contig's name.*got 'chr2'"),
        ("chr1\t600\nchr1\t600\n", "line 2"),
        ("chr1\tlong\n", "line 1"),
    ):
        (tmp_path / "chrom.sizes").write_text(content)
        with pytest.raises(ValueError, match=message):
            export(store, bigwig=tmp_path / "s.bw", chrom_sizes=tmp_path / "chrom.sizes")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        export(store, bigwig=tmp_path / "s.bw", chrom_sizes=tmp_path / "hg38.chrom.sizes")
    assert [path.name for path in tmp_path.iterdir()] == ["chrom.sizes"]


def test_files_that_can_not_be_written(store, fasta, tmp_path):
    for files, error, message in (
        ({}, ValueError, "nothing to write: name a file for h5, npz"),
        ({"h5": tmp_path}, ValueError, "is a folder"),
        ({"h5": tmp_path / "none" / "s.h5"}, FileNotFoundError, "there is no folder .*none for s.h5"),
        ({"h5": tmp_path / "s", "narrowpeak": tmp_path / "s"}, ValueError, "two files"),
        ({"h5": tmp_path / "s", "narrowpeak": tmp_path / "t" / ".." / "s"}, ValueError, "two files"),
        ({"bigwig": fasta, "chrom_sizes": fasta}, ValueError, "this run reads it"),
        ({"bigwig": tmp_path / "s", "chrom_sizes": LENGTHS | {"long": 2**32}}, ValueError, "which long don't have"),
        ({"narrowpeak": tmp_path / "s.narrowPeak.gz"}, ValueError, "plain text"),
    ):
        with pytest.raises(error, match=message):
            export(store, **files)
    with pytest.raises(FileNotFoundError, match="there is no store"):
        export(tmp_path / "none.zarr", h5=tmp_path / "s.h5")
    assert not list(tmp_path.iterdir())


def test_a_file_is_complete_or_what_it_was(store, tmp_path, monkeypatch):
    files = {"h5": tmp_path / "s.h5", "npz": tmp_path / "s", "bigwig": tmp_path / "s.bw", "bedgraph": tmp_path / "s.gz"}
    files |= {"narrowpeak": tmp_path / "s.narrowPeak"}
    names = {"s.h5", "s.ohe.npz", "s.hyp.npz", "s.bw", "s.gz", "s.narrowPeak"}
    for name in names:
        (tmp_path / name).write_text("before")
    whole = Store.one_hot

    def cut_short(self, start, stop):
        if start:
            raise OSError("the disk is gone")
        return whole(self, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "one_hot", cut_short)
        with pytest.raises(OSError, match="the disk is gone"):
            export(store, **files, chrom_sizes=LENGTHS)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, "before")
    export(store, **files, chrom_sizes=LENGTHS)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert b"before" not in {path.read_bytes() for path in tmp_path.iterdir()}


def test_where_nothing_can_be_written(store, tmp_path, monkeypatch, capsys):
    """The name is the user's, and not the hidden one that a file has until it is complete."""

    def refuses(path, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Regions, "write", lambda self, path: refuses(path))
    monkeypatch.setattr(type(tmp_path), "unlink", refuses)
    assert main(["export", str(store), "--narrowpeak", str(tmp_path / "s.bed")]) == 74
    assert capsys.readouterr().err.splitlines()[-1] == f"jaxlift: {tmp_path / 's.bed'}: Read-only file system"


def test_a_bigwig_that_pybigwig_gives_up(store, tmp_path, monkeypatch):
    def opened(path, mode):
        file = pyBigWig.open(path, mode)
        return types.SimpleNamespace(addHeader=file.addHeader, close=file.close, addEntries=gives_up)

    def gives_up(*_, **options):
        raise SystemError("returned NULL without setting an exception")

    monkeypatch.setattr(_export, "extra", lambda name: types.SimpleNamespace(open=opened))
    with pytest.raises(OSError, match="could not be written to its end: is the disk full") as raised:
        export(store, bigwig=tmp_path / "s.bw", chrom_sizes=LENGTHS)
    assert raised.value.filename == str(tmp_path / "s.bw")
    assert not list(tmp_path.iterdir())


def test_a_bigwig_that_is_cut_short(store, tmp_path, monkeypatch):
    """As pyBigWig leaves one on a full disk, without an error."""

    class Cut:
        def __init__(self, path, mode):
            self.path, self.file = Path(path), pyBigWig.open(path, mode)
            self.addHeader, self.addEntries = self.file.addHeader, self.file.addEntries

        def close(self):
            self.file.close()
            os.truncate(self.path, self.path.stat().st_size - 10)

    monkeypatch.setattr(_export, "extra", lambda name: types.SimpleNamespace(open=Cut))
    with pytest.raises(OSError, match="could not be written to its end"):
        export(store, bigwig=tmp_path / "s.bw", chrom_sizes=LENGTHS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "suffix", "limit"),
    [("h5", "", 4000), ("npz", ".hyp.npz", 1500), ("bedgraph", "", 3000), ("narrowpeak", "", 100)],
)
def test_a_full_disk(store, tmp_path, file, suffix, limit):
    """What a full disk does, a limit on the size of files does. HDF5 ends the process where it can't write."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    run = command("export", str(store), f"--{file}", "s", folder=tmp_path, first=limited)
    assert (run.returncode, run.stderr.splitlines()[-1]) == (74, f"jaxlift: s{suffix}: File too large")
    assert not {path.name for path in tmp_path.iterdir()} - {"s.ohe.npz"}


def test_hdf5_reads_what_no_disk_has(tmp_path):
    """What was written since the disk was full is read as if it were there."""
    rng, wanted = np.random.default_rng(0), bytearray(1000)
    file = _export._Patient(tmp_path / "x")
    file.write(wanted)
    file.error = OSError("full")
    for _ in range(100):
        at, data = int(rng.integers(900)), rng.bytes(int(rng.integers(1, 100)))
        wanted[at : at + len(data)] = data
        file.seek(at)
        assert file.write(data) == len(data)
        assert file.tell() == at + len(data)
    file.seek(100)
    assert file.read(700) == wanted[100:800]
    file.close()
    assert (tmp_path / "x").read_bytes() == bytes(1000)


@pytest.mark.parametrize("how", ["a byte is another", "the numbers are others"])
def test_damaged_chunks(store, tmp_path, how, capsys):
    """They are found where they are read, and only there."""
    path = shutil.copytree(store, tmp_path / "s.zarr")
    if how == "a byte is another":
        file = path / "hypothetical" / "c.1.0.0"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        zarr.open_group(path)["hypothetical"][6, 0] += 1
    for arguments in (["export", str(path), "--npz", str(tmp_path / "s")], ["plot", str(path), "4"]):
        assert main(arguments) == 74
        err = capsys.readouterr().err
        assert f"jaxlift: {path}: chunk 1 of hypothetical, of the examples 4 to 7, is damaged. The same `jaxl" in err
    assert main(["plot", str(path), "3", "--out", str(tmp_path / "s.png")]) == 0
    export(path, narrowpeak=tmp_path / "s.narrowPeak")


def test_a_store_without_scores(fasta, tmp_path):
    path = score(fasta, tmp_path / "s.zarr", lambda x: scored.model(x) * jnp.nan)
    with pytest.raises(ValueError, match="none of its 12 examples has scores"):
        export(path, h5=tmp_path / "s.h5")


def test_command(store, contributions, fasta, tmp_path, capsys):
    h5, bigwig, bedgraph = (str(tmp_path / name) for name in ("s.h5", "s.bw", "s.bedgraph"))
    assert main(["export", str(store), "--h5", h5, "--bigwig", bigwig, "--genome", str(fasta)]) == 0
    out, err = capsys.readouterr()
    assert out == f"11 examples written, scores as float16\n{h5}\n{bigwig}\n"
    assert err == "jaxlift: 1 left out: malformed\n"
    assert h5py.File(h5)["raw/seq"].shape == (11, 4, WIDTH)
    assert main(["export", str(contributions), "--bedgraph", bedgraph]) == 0
    capsys.readouterr()
    assert main(["export", str(store), "--bigwig", bigwig]) == 2
    assert "give --chrom-sizes, such as" in capsys.readouterr().err
    (tmp_path / "sizes").write_text("chr1\t599\nchr2\t300\nchr10\t50\n")
    arguments = ["export", str(store), "--bigwig", bigwig, "--chrom-sizes", str(tmp_path / "sizes")]
    assert main(arguments) == 2
    assert f"chr1 has 599 bases in --chrom-sizes {tmp_path / 'sizes'}, and the store" in capsys.readouterr().err
    assert main(["export", str(contributions), "--npz", str(tmp_path / "s")]) == 2
    assert "--output hypothetical" in capsys.readouterr().err


MOTIF = "TGACTCAT"


def tool(name):
    """The command of another package, in this environment or on the path."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=folders) or pytest.skip(f"the command {name} is not installed")


def convolved(x, kernel):
    return jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")))


def has_motif(x):
    """How well the motif matches, on either strand, and less of other things, `(N, L, 4) -> (N, 1)`."""
    kernel = jnp.asarray(np.eye(4, dtype=np.float32)[["ACGT".index(letter) for letter in MOTIF]])[:, :, None]
    others = jax.random.normal(jax.random.key(5), (3, 4, 8))
    matches = convolved(x, kernel - 5 / len(MOTIF)) + convolved(x[:, ::-1, ::-1], kernel - 5 / len(MOTIF))
    return (matches[..., 0].sum(1) + 0.05 * (convolved(x, others) @ jnp.array([1.0, -1] * 4)).sum(1))[:, None]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A store of windows with a motif in each, half of them on the other strand, and what is exported of it."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(3)
    n, width, step = 300, 400, 440
    letters = rng.choice([*"ACGT"], n * step)
    starts = np.arange(n) * step + 20
    for start in starts:
        at = start + int(rng.integers(20, width - 30))
        letters[at : at + len(MOTIF)] = [*MOTIF]
    (folder / "genome.fa").write_text(f">chr1\n{''.join(letters)}\n")
    starts = rng.permutation(starts)
    peaks = Regions(np.full(n, "chr1"), starts, starts + width, strand=rng.choice(["+", "-"], n))
    attr = jaxlift.attribute(has_motif, target=0, output="hypothetical")
    windows = Windows(folder / "genome.fa", peaks, width)
    quarters = np.full((width, 4), 0.25, np.float32)
    jaxlift.score(attr, windows, out=folder / "s.zarr", reference=quarters, progress="none")
    export(folder / "s.zarr", h5=folder / "s.h5", npz=folder / "s", narrowpeak=folder / "s.narrowPeak")
    return folder, peaks


@pytest.mark.slow
@pytest.mark.parametrize("format", ["h5", "npz"])
def test_modisco_finds_the_motif(planted, format):
    folder, _ = planted
    inputs = ["-i", "s.h5"] if format == "h5" else ["-s", "s.ohe.npz", "-a", "s.hyp.npz"]
    command = [tool("modisco"), "motifs", *inputs, "-n", "2000", "-l", "1", "-w", "400", "-o", f"{format}.modisco.h5"]
    subprocess.run(command, cwd=folder, check=True, timeout=900)
    with h5py.File(folder / f"{format}.modisco.h5") as file:
        pattern = file["pos_patterns/pattern_0"]
        contributions, seqlets = pattern["contrib_scores"][...], pattern["seqlets/n_seqlets"][...]
    likely = "".join("ACGT"[i] for i in contributions.argmax(1))
    turned = likely[::-1].translate(str.maketrans("ACGT", "TGCA"))
    assert MOTIF in likely or MOTIF in turned, likely
    assert int(seqlets.sum()) > 100  # of the 300


@pytest.mark.slow
@pytest.mark.parametrize("format", ["h5", "npz"])
def test_finemo_reads_the_same_rows_at_the_same_places(planted, format):
    folder, peaks = planted
    kind = ["chrombpnet-h5", "-c", "s.h5"] if format == "h5" else ["modisco-fmt", "-s", "s.ohe.npz", "-a", "s.hyp.npz"]
    name, *inputs = kind
    command = [tool("finemo"), f"extract-regions-{name}", *inputs, "-p", "s.narrowPeak", "-w", "200"]
    subprocess.run([*command, "-o", f"{format}.regions.npz"], cwd=folder, check=True, timeout=300)
    found = np.load(folder / f"{format}.regions.npz")
    one_hot, scores = (np.load(folder / f"s.{part}.npz")["arr_0"][:, :, 100:300] for part in ("ohe", "hyp"))
    np.testing.assert_array_equal(found["sequences"], one_hot)
    np.testing.assert_array_equal(found["contributions"], scores.astype(np.float16))
    np.testing.assert_array_equal(found["start"], peaks.start + 100)
    assert found["peak_name"].tolist() == peaks.name.tolist()
    genome = (folder / "genome.fa").read_text().splitlines()[1]
    for start, sequence in zip(found["start"], found["sequences"], strict=True):
        assert "".join("ACGT"[i] for i in sequence.argmax(0)) == genome[start : start + 200]
