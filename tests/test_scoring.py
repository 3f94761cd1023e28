"""`score`: the numbers of `attribute` on the whole array, wherever they come from and whatever happens on the way."""

import contextlib
import functools
import gzip
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scored
import zarr

import jaxlift
from jaxlift import references
from jaxlift._memory import as_bytes
from jaxlift.scoring import Status, StoreError, _device
from jaxlift.scoring._examples import open_examples
from jaxlift.scoring._shards import Shard, lock
from jaxlift.scoring._store import Store

X = scored.sequences(53)
ONE = jax.local_devices()[:1]
attr = jaxlift.attribute(scored.model, target=1)
CACHE = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


def expected(x=X, reference=0.25, **options):
    """Scores, delta and both outputs, from one call on all examples."""
    options = {"target": 1, "full": True} | options
    reference = jnp.broadcast_to(jnp.asarray(reference), x.shape[1:]) if np.ndim(reference) < 2 else reference
    found = jax.jit(jaxlift.attribute(scored.model, **options))(jnp.asarray(x), reference=reference)
    return found.scores, found.delta, found.output, found.output_reference


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Most tests run the same program: JAX keeps it on disk."""
    CACHE["jax_compilation_cache_dir"] = str(tmp_path_factory.mktemp("compiled"))
    before = {name: getattr(jax.config, name) for name in CACHE}
    for name, value in CACHE.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def against_zeros():
    return expected(reference=0.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Copies of one finished store, `score(X, path)` as of now, for what comes after a run."""
    store = tmp_path_factory.mktemp("finished") / "s"
    score(X, store)
    return lambda path: shutil.copytree(store, path)


def score(examples, out, **options):
    """In small batches and on one device, so that there are many of them, and they compile in no time."""
    options = {"reference": "zeros", "batch_size": 4, "devices": ONE, "progress": "none"} | options
    return jaxlift.score(options.pop("attr", attr), examples, out=out, **options)


def read(out):
    return {name: array[...] for name, array in zarr.open_group(out, mode="r").arrays()}


def read_after_a_kill(out):
    """Killed between writing a file beside its place and moving it there, zarr leaves that file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Object at zarr\.json\..*\.partial is not recognized", UserWarning)
        return read(out)


def close(out, wanted, rows=slice(None)):
    for name, values in zip(("contributions", "output", "output_reference"), (wanted[0], *wanted[2:]), strict=True):
        np.testing.assert_allclose(read(out)[name][rows], values[rows], rtol=1e-5, atol=1e-6)
    assert np.abs(read(out)["delta"][rows]).max() < 1e-5


def same(out, other):
    one, two = read(out), read(other)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def fasta(path, sequences, lower=()):
    texts = ["".join("ACGT"[i] for i in x.argmax(1)) for x in sequences]
    texts = [text.lower() if i in lower else text for i, text in enumerate(texts)]
    content = "".join(f">peak {i}\n{text[:25]}\n{text[25:]}\n" for i, text in enumerate(texts))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    return path


def npy(folder):
    np.save(folder / "x.npy", X)
    return folder / "x.npy"


def npz(folder):
    np.savez(folder / "x.npz", x=X, y=np.zeros(3))
    return f"{folder}/x.npz:x"


def compressed(folder):
    np.savez_compressed(folder / "x.npz", X)
    return folder / "x.npz"


def hdf5(folder):
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("peaks/x", data=X.astype(np.int8), chunks=(10, 40, 4), compression="gzip")
        file["labels"] = np.zeros(3)
    return f"{folder}/x.h5:peaks/x"


def zarr_array(folder):
    zarr.create_array(folder / "x.zarr", data=X, chunks=(10, 40, 4))
    return folder / "x.zarr"


def zarr_group(folder):
    zarr.open_group(folder / "x.zarr", mode="w").create_array("x", data=X)
    return f"{folder}/x.zarr:x"


class Source:
    """A Grain data source has these two, and `repr`."""

    def __len__(self):
        return len(X)

    def __getitem__(self, number):
        return X[number]


SOURCES = {
    "array": lambda folder: X,
    "bytes": lambda folder: X.astype(np.uint8),
    "truth values": lambda folder: X.astype(bool),
    "big-endian": lambda folder: X.astype(">f8"),
    "JAX": lambda folder: jnp.asarray(X),
    "list": lambda folder: list(X),
    "data source": lambda folder: Source(),
    "stream": lambda folder: iter(X),
    "npy": npy,
    "npz": npz,
    "compressed npz": compressed,
    "HDF5": hdf5,
    "HDF5 dataset": lambda folder: h5py.File(hdf5(folder).rpartition(":")[0])["peaks/x"],
    "Zarr": zarr_array,
    "Zarr group": zarr_group,
    "FASTA": lambda folder: fasta(folder / "x.fa", X, lower=(0, 3)),
    "gzipped FASTA": lambda folder: fasta(folder / "x.fa.gz", X),
}


@pytest.mark.parametrize("source", SOURCES)
def test_examples_from(source, tmp_path, against_zeros):
    summary = score(SOURCES[source](tmp_path), tmp_path / "s")
    assert (summary.examples, summary.scored, summary.computed, summary.bad) == (53, 53, 53, {})
    close(tmp_path / "s", against_zeros)
    assert read(tmp_path / "s")["status"].tolist() == [Status.SCORED] * 53


def test_grain(tmp_path, against_zeros):
    grain = pytest.importorskip("grain")
    score(grain.MapDataset.source(list(X)).map(lambda x: x), tmp_path / "map")
    score(grain.MapDataset.source(list(X)).to_iter_dataset(), tmp_path / "iter")
    close(tmp_path / "map", against_zeros)
    close(tmp_path / "iter", against_zeros)


class TestReferences:
    def test_mean_and_frequencies(self, tmp_path):
        x = np.concatenate([X, np.zeros((3, 40, 4), np.float32)])  # without a base
        for name in ("mean", "frequencies"):
            summary = score(x, tmp_path / name, reference=name)
            assert summary.scored == 56
            reference = getattr(references, name)(x)
            np.testing.assert_allclose(read(tmp_path / name)["reference"], reference, rtol=1e-6)
            close(tmp_path / name, expected(x, reference))

    def test_dinucleotide_shuffles_do_not_depend_on_batches(self, tmp_path):
        options = {"reference": "dinucleotide_shuffle", "shuffles": 3, "seed": 7}
        score(X, tmp_path / "4", **options)

        @jax.jit
        def shuffles(x):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(53))
            return jax.vmap(references.dinucleotide_shuffle, (0, 0, None))(x, keys, 3)

        close(tmp_path / "4", expected(reference=shuffles(X)))

    @pytest.mark.parametrize("kind", ["one", "shared", "as many as a batch", "paired", "several of each"])
    def test_arrays_by_rank(self, tmp_path, kind):
        leading = {"one": (), "shared": (3,), "as many as a batch": (4,), "paired": (53,), "several of each": (53, 2)}
        reference = np.random.default_rng(1).random((*leading[kind], 40, 4), np.float32)
        options = {"pairing": "paired"} if kind == "paired" else {}
        np.save(tmp_path / "r.npy", reference)
        wanted = expected(reference=reference, **options)
        for out, given in (("array", reference), ("file", tmp_path / "r.npy")):
            score(X, tmp_path / out, attr=jaxlift.attribute(scored.model, target=1, **options), reference=given)
            close(tmp_path / out, wanted)

    @pytest.mark.parametrize("count", [1, 2])
    def test_function_of_the_example(self, tmp_path, count):
        def reference(x):
            return x[::-1] if count == 1 else np.stack([x[::-1], x[:, ::-1]])

        several = np.stack([reference(x).reshape(count, 40, 4) for x in X])
        wanted = expected(reference=several)
        for out, examples in (("array", X), ("stream", iter(X))):
            score(examples, tmp_path / out, reference=reference)
            close(tmp_path / out, wanted)

    def test_none_for_a_rule_that_needs_none(self, tmp_path):
        score(X, tmp_path / "s", attr=jaxlift.attribute(scored.model, target=1, rule="gradient"), reference=None)
        wanted = X * jax.jit(jax.grad(lambda x: scored.model(x)[:, 1].sum()))(X)
        np.testing.assert_allclose(read(tmp_path / "s")["contributions"], wanted, rtol=1e-4, atol=1e-6)


cheap = jaxlift.attribute(lambda x: x.sum((1, 2)))


@functools.cache
def without_names():
    return jax.jit(jaxlift.attribute(scored.named, target=1))


class TestResults:
    @pytest.mark.parametrize("output", ["multipliers", "hypothetical"])
    def test_other_outputs(self, tmp_path, output):
        score(X, tmp_path / "s", attr=jaxlift.attribute(scored.model, target=1, output=output))
        np.testing.assert_allclose(read(tmp_path / "s")[output], expected(reference=0.0, output=output)[0], atol=1e-6)

    def test_all_targets_and_each_reference(self, tmp_path):
        shared = np.random.default_rng(1).random((2, 40, 4), np.float32)
        options = {"target": "all", "average": False}
        score(X, tmp_path / "s", attr=jax.jit(jaxlift.attribute(scored.model, **options)), reference=shared)
        close(tmp_path / "s", expected(reference=shared, **options))
        assert read(tmp_path / "s")["delta"].shape == (53, 2, 3)

    @pytest.mark.parametrize(
        "options",
        [
            {"layer": "hidden"},
            {"rule": jaxlift.PerLayer(scopes={"*second*": "revealcancel"})},
            {"rule": jaxlift.PerLayer(dense="revealcancel")},
        ],
        ids=["layer", "name scope", "kind of map"],
    )
    def test_names_inside_of_the_model(self, tmp_path, options):
        """What is scored is the model's program, which has them as the model has."""
        # Small inputs: float32 has fewer digits after the point where scores are 20.
        x = np.random.default_rng(0).normal(0, 0.25, (3, 4)).astype(np.float32)
        one = jaxlift.attribute(scored.named, target=1, **options)
        score(x, tmp_path / "s", attr=one)
        wanted = jax.jit(one)(x, reference=jnp.zeros(4))
        plain = without_names()(x, reference=jnp.zeros(4))
        assert wanted.shape != plain.shape or np.abs(wanted - plain).max() > 1e-3
        np.testing.assert_allclose(read(tmp_path / "s")["contributions"], wanted, atol=1e-6)

    def test_scores_add_up(self, tmp_path, finished):
        s = read(finished(tmp_path / "s"))
        np.testing.assert_allclose(
            s["contributions"].sum((1, 2)) + s["delta"], s["output"] - s["output_reference"], atol=1e-6
        )

    def test_read_in_one_line(self, tmp_path, finished):
        xarray = pytest.importorskip("xarray")
        finished(tmp_path / "s.zarr")
        by_zarr = zarr.open(tmp_path / "s.zarr")["contributions"][:]
        by_xarray = xarray.open_zarr(tmp_path / "s.zarr", consolidated=False)["contributions"].values
        np.testing.assert_array_equal(by_zarr, by_xarray)

    def test_metadata_repeat_the_run(self, tmp_path):
        summary = score(
            npy(tmp_path), tmp_path / "s", reference="dinucleotide_shuffle", shuffles=2, seed=3, command=["a", "b"]
        )
        store = Store(tmp_path / "s", mode="r")
        settings, [run] = store.settings, store.runs
        assert settings["model"]["name"] == "scored:model"
        assert settings["attribution"]["rule"] == "Rescale()"
        assert settings["attribution"]["target"] == 1
        assert settings["reference"] == {"name": "dinucleotide_shuffle", "shuffles": 2, "seed": 3}
        assert settings["environment"]["jax"] == jax.__version__
        assert (run["command"], run["examples"]) == (["a", "b"], str(tmp_path / "x.npy"))
        assert run["largest_delta"] == summary.largest_delta == np.abs(read(tmp_path / "s")["delta"]).max()

    def test_checksums_tell_parameters_and_programs_apart(self, tmp_path):
        def checksums(scale, activation=jax.nn.relu):
            weights = jnp.full((4, 2), scale)
            fun = jax.jit(lambda x: activation(x @ weights).sum((1, 2)))
            score(X[:3], tmp_path / "s", attr=jaxlift.attribute(fun), overwrite=True)
            return zarr.open_group(tmp_path / "s").attrs["jaxlift"]["settings"]["model"]

        one, again, other, tanh = checksums(1.0), checksums(1.0), checksums(2.0), checksums(1.0, jnp.tanh)
        assert one == again
        assert one["parameters"] != other["parameters"]
        assert one["program"] == other["program"]
        assert (one["parameters"], one["program"]) != (tanh["parameters"], tanh["program"])
        assert one["parameters"] == tanh["parameters"]


class TestLettersFirst:
    """Examples `(4, L)`: the same numbers, with the axes the other way round."""

    @pytest.mark.parametrize(("axis", "from_fasta"), [(0, False), (-2, True)])
    @pytest.mark.parametrize("reference", ["frequencies", "dinucleotide_shuffle"])
    def test_the_same_scores(self, tmp_path, axis, reference, from_fasta):
        options = {"target": 1, "output": "hypothetical"}
        last = jaxlift.attribute(scored.model, **options)
        first = jaxlift.attribute(scored.letters_first, channel_axis=axis, **options)
        path = fasta(tmp_path / "x.fa", X[:20]) if from_fasta else None
        score(path or X[:20], tmp_path / "last", attr=last, reference=reference, shuffles=2)
        score(path or X[:20].transpose(0, 2, 1), tmp_path / "first", attr=first, reference=reference, shuffles=2)
        last, first = (read(tmp_path / out) for out in ("last", "first"))
        assert first["hypothetical"].shape == (20, 4, 40)
        for name in {"hypothetical", "reference"} & first.keys():
            np.testing.assert_allclose(first[name].swapaxes(-1, -2), last[name], atol=1e-6)
        np.testing.assert_allclose(first["output_reference"], last["output_reference"], atol=1e-6)


class TestFasta:
    @pytest.mark.parametrize(
        "change",
        [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.replace(b"\n", b"\r\n"), lambda b: b"\n\n" + b.rstrip()],
        ids=["byte-order mark", "CRLF", "empty lines"],
    )
    def test_is_read_as_it_is_meant(self, tmp_path, change):
        path = fasta(tmp_path / "x.fa", X)
        path.write_bytes(change(path.read_bytes()))
        with contextlib.closing(open_examples(path)) as examples:
            records = examples.read(0, 100)
        np.testing.assert_array_equal(records.values, X)

    @pytest.mark.parametrize("first", ["", "ACGT"])
    def test_a_short_first_record_spoils_no_other(self, tmp_path, first):
        path = fasta(tmp_path / "x.fa", X)
        path.write_text(f">first\n{first}\n{path.read_text()}")
        with contextlib.closing(open_examples(path)) as examples:
            records = examples.read(0, 100)
        assert records.messages == {0: f"the record has {len(first)} letters, expected 40 as most have"}
        np.testing.assert_array_equal(records.values[1:], X)


class TestOverwriting:
    def test_nothing_goes_before_a_run_can_begin(self, tmp_path, monkeypatch, finished):
        monkeypatch.chdir(tmp_path)
        before = read(finished("s"))
        for change, error in (
            ({"reference": "zeroes"}, ValueError),
            ({"attr": jaxlift.attribute(scored.model, target=9)}, ValueError),
            ({"batch_size": None, "memory": 10}, MemoryError),
            ({"examples": "s:contributions"}, StoreError),
            ({"reference": "s:reference"}, StoreError),
        ):
            with pytest.raises(error):
                score(change.pop("examples", X), "s", overwrite=True, **change)
            np.testing.assert_equal(read("s"), before)
        score(X[:20], "s", overwrite=True)
        assert len(read("s")["status"]) == 20
        assert sorted(path.name for path in tmp_path.iterdir()) == [".s.lock", "s"]

    def test_behind_a_link(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        score(X[:9], tmp_path / "link")
        with lock(tmp_path / "real", Shard()), pytest.raises(StoreError, match="another run works on"):
            score(X, tmp_path / "link")
        with pytest.raises(StoreError, match="has what this run reads"):
            score(f"{tmp_path}/real:contributions", tmp_path / "link", overwrite=True)
        score(X[:20], tmp_path / "link", overwrite=True)
        assert (tmp_path / "link").is_symlink()
        assert len(read(tmp_path / "real")["status"]) == 20

    def test_where_nothing_can_be_written(self, tmp_path, monkeypatch, finished):
        """As on a file system that is mounted for reading, which a test can't have."""
        finished(tmp_path / "s")
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert score(X, tmp_path / "s").computed == 0
        assert not (tmp_path / ".s.lock").exists()
        zarr.open_group(tmp_path / "s")["status"][40:] = 0
        with pytest.raises(PermissionError, match="not finished"):
            score(X, tmp_path / "s")


class TestBatches:
    def test_one_compilation_and_no_padding_in_the_output(self, tmp_path, against_zeros):
        def traces(count):
            found = []

            def counted(x):
                found.append(x.shape)
                return scored.model(x)

            score(X[:count], tmp_path / str(count), attr=jaxlift.attribute(counted, target=1), batch_size=7)
            return len(found)

        assert traces(53) == traces(7)  # eight batches and a ragged one, as one whole one
        close(tmp_path / "53", against_zeros)
        assert read(tmp_path / "53")["contributions"].shape == X.shape

    @pytest.mark.parametrize("reference", ["zeros", "dinucleotide_shuffle"])
    def test_large_examples_one_after_the_other(self, tmp_path, monkeypatch, reference):
        """On hosts, where one takes much memory: the same scores, and the same bits where a run goes on."""
        options = {"batch_size": None, "reference": reference, "shuffles": 3, "devices": jax.local_devices()[:2]}
        score(X, tmp_path / "at once", **options)
        monkeypatch.setattr(_device, "WORK_ENOUGH", 0)
        score(X, tmp_path / "in turn", **options)
        settings = [zarr.open_group(tmp_path / name).attrs["jaxlift"]["settings"] for name in ("at once", "in turn")]
        assert [each["in_turn"] for each in settings] == [False, True]
        for name in ("contributions", "output", "output_reference"):
            np.testing.assert_allclose(*(read(tmp_path / of)[name] for of in ("at once", "in turn")), atol=1e-6)
        with pytest.raises(MemoryError, match="one example takes"):
            score(X, tmp_path / "small", memory=100, **options)
        shutil.copytree(tmp_path / "in turn", tmp_path / "again")
        status = zarr.open_group(tmp_path / "again")["status"]
        status[: status.chunks[0]] = 0
        monkeypatch.undo()
        score(X, tmp_path / "again", **options)
        same(tmp_path / "in turn", tmp_path / "again")

    def test_batch_from_the_compiled_programs_memory(self, tmp_path, against_zeros):
        sizes = {}
        for memory in ("120kB", "1GB"):
            score(X, tmp_path / memory, batch_size=None, memory=memory)
            sizes[memory] = zarr.open_group(tmp_path / memory).attrs["jaxlift"]["settings"]["batch_size"]
            close(tmp_path / memory, against_zeros)
        assert sizes["120kB"] < sizes["1GB"] == 64
        with pytest.raises(MemoryError, match=r"one example takes .* budget is 100 bytes"):
            score(X, tmp_path / "s", batch_size=None, memory=100)
        assert not (tmp_path / "s").exists()

    def test_devices_give_the_same_bits(self, tmp_path):
        for count in (1, 3, 8):
            score(X, tmp_path / str(count), devices=jax.local_devices()[:count])
        same(tmp_path / "1", tmp_path / "3")
        same(tmp_path / "1", tmp_path / "8")

    def test_devices_do_not_talk(self):
        from jaxlift.scoring._device import Program
        from jaxlift.scoring._reference import read_reference

        source = open_examples(X)
        shuffles = read_reference("dinucleotide_shuffle", source, paired=False, shuffles=2, seed=0, stored=None)
        program = Program(attr, source, shuffles, jax.local_devices())
        program.compile(1)
        assert program.mesh.size == 8
        for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
            assert collective not in program.compiled.as_text()


class TestBadExamples:
    def test_each_is_marked_and_none_spoils_another(self, tmp_path, against_zeros):
        class Broken(Source):
            def __getitem__(self, number):
                match number:
                    case 3:
                        raise OSError("the disk has a hole")
                    case 8:
                        return X[number][:39]
                    case 9:
                        return np.array(["A"])
                    case 20:
                        return np.where(np.arange(4) == 2, np.nan, X[number])
                return X[number]

        bad = {3: Status.UNREADABLE, 8: Status.MALFORMED, 9: Status.MALFORMED, 20: Status.NOT_FINITE}
        summary = score(Broken(), tmp_path / "s")
        assert summary.bad == bad
        assert "2 malformed: 8, 9" in str(summary)
        s = read(tmp_path / "s")
        good = np.array([i for i in range(53) if i not in bad])
        close(tmp_path / "s", against_zeros, good)
        for number, status in bad.items():
            assert s["status"][number] == status
            assert np.isnan(s["contributions"][number]).all()
            assert np.isnan([s[name][number] for name in ("delta", "output", "output_reference")]).all()
        again = score(Broken(), tmp_path / "s")
        assert (again.computed, again.bad) == (0, bad)

    def test_in_a_stream(self, tmp_path, against_zeros):
        items = [*X[:10], X[0][:3], *X[11:]]
        assert score(iter(items), tmp_path / "s").bad == {10: Status.MALFORMED}
        close(tmp_path / "s", against_zeros, np.arange(53) != 10)

    def test_records_of_a_genome(self, tmp_path, capsys):
        """No length is that of most."""
        (tmp_path / "genome.fa").write_text(">a\nACGTA\n>b\nACGT\n>c\nACG\n")
        assert score(tmp_path / "genome.fa", tmp_path / "s", attr=cheap, progress="lines").scored == 1
        message = "the record has 4 letters, expected 5 as the first has: no two records have the same length. For wind"
        assert f"example 1: {message}ows of a genome give --regions BED --width L" in capsys.readouterr().err

    def test_a_gzipped_fasta_file_of_any_name(self, tmp_path, against_zeros):
        path = fasta(tmp_path / "x.fa", X)
        path.write_bytes(gzip.compress(path.read_bytes()))
        score(path, tmp_path / "s")
        close(tmp_path / "s", against_zeros)

    def test_in_a_fasta_file(self, tmp_path, against_zeros, capsys):
        lines = fasta(tmp_path / "x.fa", X).read_text().split(">")
        lines[5] = lines[5].replace("A", "E", 1)
        lines[7] = lines[7][:-3] + "\n"
        lines[9] = f"peak\n{'N' * 40}\n"
        (tmp_path / "x.fa").write_text(">".join(lines))
        summary = score(tmp_path / "x.fa", tmp_path / "s", progress="lines")
        assert summary.bad == {4: Status.MALFORMED, 6: Status.MALFORMED}
        assert "example 4: letter 'E' at position" in capsys.readouterr().err
        close(tmp_path / "s", against_zeros, ~np.isin(np.arange(53), [4, 6, 8]))
        assert (read(tmp_path / "s")["contributions"][8] == 0).all()

    def test_a_damaged_file(self, tmp_path, against_zeros):
        path = hdf5(tmp_path).rpartition(":")[0]
        with h5py.File(path) as file:
            info = file["peaks/x"].id.get_chunk_info(2)
        with open(path, "r+b") as file:
            file.seek(info.byte_offset + 10)
            file.write(b"\xff" * 20)
        assert score(f"{path}:peaks/x", tmp_path / "s").bad == dict.fromkeys(range(20, 30), Status.UNREADABLE)
        close(tmp_path / "s", against_zeros, np.r_[:20, 30:53])

    def test_scores_that_are_not_finite(self, tmp_path):
        fun = jaxlift.attribute(lambda x: jnp.sqrt(x[:, :, 0].sum(1) - 4))
        x = X.copy()
        x[12, :, 0] = 0
        reference = np.ones((40, 4))
        assert score(x, tmp_path / "s", attr=fun, reference=reference).bad == {12: Status.SCORES_NOT_FINITE}

    def test_references_that_fail(self, tmp_path):
        def reference(x):
            if (x == X[5]).all():
                raise LookupError("no such peak")
            return x[::-1]

        assert score(X, tmp_path / "f", reference=reference).bad == {5: Status.NO_REFERENCE}
        x = X.copy()
        x[4] *= 0.5
        shuffled = score(x, tmp_path / "s", reference="dinucleotide_shuffle", shuffles=2, seed=3)
        assert shuffled.bad == {4: Status.NO_REFERENCE}


class TestFaults:
    def test_goes_on_where_it_stopped(self, tmp_path, monkeypatch):
        x = scored.sequences(500)
        score(x, tmp_path / "whole")
        for broken_at in (70, 300):

            class Breaks(Source):
                def __len__(self):
                    return len(x)

                def __getitem__(self, number, at=broken_at):
                    if number == at:
                        raise KeyboardInterrupt
                    return x[number]

            with pytest.raises(KeyboardInterrupt) as raised:
                score(Breaks(), tmp_path / "s")
            status = read(tmp_path / "s")["status"]
            kept = f", {(status == Status.SCORED).sum()} of 500 examples; a chunk (64 examples) that wasn't finished is"
            assert raised.value.__notes__[0].startswith(f"What is finished is valid, in {tmp_path / 's'}{kept} done")
            assert 0 < (status == Status.SCORED).sum() <= broken_at
            np.testing.assert_array_equal(
                read(tmp_path / "s")["contributions"][status == 1],
                read(tmp_path / "whole")["contributions"][status == 1],
            )
        assert 0 < score(x, tmp_path / "s").computed < 250
        same(tmp_path / "s", tmp_path / "whole")

    def test_little_is_done_again(self, tmp_path):
        """Batches of any size: a run has eight chunks, if it has examples enough."""
        for count, batch, size in ((512, 16, 64), (40, 8, 64), (53, 64, 64), (512, 128, 128)):
            score(scored.sequences(count), tmp_path / f"{count}-{batch}", batch_size=batch, attr=cheap)
            assert Store(tmp_path / f"{count}-{batch}", "r").chunk == size

    def test_a_stream_goes_on_too(self, tmp_path):
        x = scored.sequences(300)
        score(x, tmp_path / "whole")

        def stopping():
            yield from x[:200]
            raise ConnectionError("lost")

        with pytest.raises(ConnectionError):
            score(stopping(), tmp_path / "s")
        assert score(iter(x), tmp_path / "s").computed == 300 - 192
        same(tmp_path / "s", tmp_path / "whole")
        with pytest.raises(StoreError, match="ended after 100 examples, and more than that are scored"):
            score(iter(x[:100]), tmp_path / "s")
        same(tmp_path / "s", tmp_path / "whole")

    def test_a_model_that_raises_leaves_nothing_behind(self, tmp_path):
        with pytest.raises(RuntimeError, match="the model is broken"):
            score(X, tmp_path / "s", attr=jaxlift.attribute(scored.raises))
        assert score(X, tmp_path / "s").scored == 53

    def test_what_follows_from_a_change_is_not_told(self, tmp_path, finished):
        """Checksums of programs and samples differ with whatever else does."""
        finished(tmp_path / "s")
        attr = jaxlift.attribute(lambda x: 2 * scored.model(x), target=2)
        with pytest.raises(StoreError) as raised:
            score(X[:50], tmp_path / "s", attr=attr)
        names = [line.strip().partition(":")[0] for line in str(raised.value).splitlines()[1:-1]]
        assert names == ["model.name", "attribution.target", "examples.count"]

    def test_changed_settings_are_refused(self, tmp_path, finished):
        finished(tmp_path / "s")
        for change, difference in (
            ({"reference": "mean"}, r'reference.name: the store has "zeros", this run "mean"'),
            ({"attr": jaxlift.attribute(scored.model, target=2)}, r"attribution.target: the store has 1, this run 2"),
            (
                {"attr": jaxlift.attribute(scored.model, target=1, rule="revealcancel")},
                r'attribution.rule: the store has "Rescale\(\)", this run "RevealCancel\(\)"',
            ),
            (
                {"attr": jaxlift.attribute(lambda x: 2 * scored.model(x), target=1)},
                r'model.name: the store has "scored:model"',
            ),
            ({"examples": X[:50]}, r"examples.count: the store has 53, this run 50"),
            ({"examples": X[::-1]}, r"examples.sample.0: the store has"),
            ({"batch_size": 5}, r"batch_size: the store has 4, this run 5"),
        ):
            message = rf"made with other settings:(?s:.*){difference}(?s:.*)overwrite=True"
            with pytest.raises(StoreError, match=message):
                score(change.pop("examples", X), tmp_path / "s", **change)
        assert score(X, tmp_path / "s", batch_size=5, overwrite=True).computed == 53

    @pytest.mark.parametrize("kind", ["function of a global", "module", "target"])
    def test_changed_weights_are_refused(self, tmp_path, kind):
        """In one process, as in a notebook, where JAX still has the trace of the same function."""
        weights = {"w": jnp.asarray(np.ones(4, np.float32))}

        class Module:
            def __call__(self, x):
                return (x @ weights["w"]).sum(1)

        def fun(x):
            return (x @ weights["w"]).sum(1)

        def target(y):
            return y[:, 1] * weights["w"][0]

        one = jaxlift.attribute(scored.model, target=target)
        one = {"module": jaxlift.attribute(Module()), "target": one}.get(kind, jaxlift.attribute(fun))
        score(X, tmp_path / "s", attr=one)
        weights["w"] = 2 * weights["w"]
        for count in (53, 40):  # finished, and not
            zarr.open_group(tmp_path / "s")["status"][count:] = 0
            before = read(tmp_path / "s")
            with pytest.raises(StoreError, match=r"model\.parameters: the store has"):
                score(X, tmp_path / "s", attr=one)
            np.testing.assert_equal(read(tmp_path / "s"), before)
        score(X, tmp_path / "new", attr=one)
        np.testing.assert_allclose(read(tmp_path / "new")["output"], 2 * before["output"], rtol=1e-6)
        checksums = [zarr.open_group(tmp_path / out).attrs["jaxlift"]["settings"]["model"] for out in ("s", "new")]
        assert checksums[0]["parameters"] != checksums[1]["parameters"]

    def test_what_is_not_a_store_is_not_touched(self, tmp_path):
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "thesis.tex").touch()
        for overwrite in (False, True):
            with pytest.raises(StoreError, match="is not a store of scores"):
                score(X, tmp_path / "s", overwrite=overwrite)
        zarr.open_group(tmp_path / "other", mode="w")
        for overwrite in (False, True):
            with pytest.raises(StoreError, match="is a Zarr group, but not a store of scores"):
                score(X, tmp_path / "other", overwrite=overwrite)
        assert (tmp_path / "other" / "zarr.json").exists()

    def test_two_runs_exclude_each_other(self, tmp_path):
        with lock(tmp_path / "s", Shard()), pytest.raises(StoreError, match="another run works on"):
            score(X, tmp_path / "s")
        assert score(X, tmp_path / "s").scored == 53

    def test_a_full_disk(self, tmp_path):
        """What a full disk does, a limit on the size of files does: a write stops half-way."""
        x = scored.sequences(300)
        x[:150] = x[0]  # compresses well
        np.save(tmp_path / "x.npy", x)
        limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
        run = command(
            "score", "scored:model", "x.npy", "--target", "1", "--batch-size", "4", folder=tmp_path, first=limited
        )
        assert run.returncode == 74, run.stderr
        assert "What is finished is valid" in run.stderr
        status = read(tmp_path / "scores.zarr")["status"]
        assert 0 < (status == Status.SCORED).sum() < 300
        assert not list((tmp_path / "scores.zarr").rglob("*.partial"))
        assert score(tmp_path / "x.npy", tmp_path / "scores.zarr").scored == 300
        score(x, tmp_path / "whole")
        same(tmp_path / "scores.zarr", tmp_path / "whole")


CASES = {
    "no attr": ({"attr": scored.model}, TypeError, r"expected what jaxlift.attribute returns, got scored:model"),
    "several arguments": (
        {"attr": jaxlift.attribute(scored.model, argnums=1)},
        ValueError,
        r"models of one array: .*functools\.partial",
    ),
    "targets": (
        {"attr": jaxlift.attribute(scored.model, target=[0, 1])},
        ValueError,
        r"a row for each of 2 examples, but numpy.ndarray has 53",
    ),
    "no such reference": ({"reference": "zeroes"}, ValueError, r"'zeroes' must be one of 'zeros', 'uniform', 'mean'"),
    "reference shape": (
        {"reference": np.zeros((3, 4))},
        ValueError,
        r"shape \(3, 4\) doesn't fit 53 examples of shape",
    ),
    "reference of a function": ({"reference": lambda x: x[:3]}, ValueError, r"it returned an array of shape \(3, 4\)"),
    "reference is NaN": ({"reference": np.full((40, 4), np.nan)}, ValueError, r"can't be used: .*NaN"),
    "no reference": (
        {"reference": None},
        TypeError,
        r"Rescale\(\) compares the input with a reference: call jaxlift\.score\(\.\.\., reference=",
    ),
    "progress": ({"progress": "tqdm"}, ValueError, r"'tqdm' must be one of 'auto', 'bar', 'lines', 'none'"),
    "part of a name": (
        {"reference": "dinucleotide"},
        ValueError,
        r"'gc_matched' of windows of a genome, in Python MatchedRegions.* Did you mean 'dinucleotide_shuffle'\?",
    ),
    "shuffled images": (
        {"examples": np.zeros((3, 8, 8)), "reference": "dinucleotide_shuffle"},
        ValueError,
        r"\(L, 4\)",
    ),
    "mean of a stream": ({"examples": iter(X), "reference": "mean"}, ValueError, r"read only once"),
    "no shuffles": ({"reference": "dinucleotide_shuffle", "shuffles": 0}, ValueError, r"shuffles=0 must be at least 1"),
    "no examples": ({"examples": X[:0]}, ValueError, r"there are no examples"),
    "empty stream": ({"examples": iter(())}, ValueError, r"there are no examples"),
    "text": ({"examples": np.array(["ACGT"])}, TypeError, r"expected examples of numbers, got dtype <U4"),
    "not examples": ({"examples": 3}, TypeError, r"arrays, an iterable of arrays, or the path of a file, got builtins"),
    "no file": ({"examples": "missing.npy"}, FileNotFoundError, r"there is no file missing\.npy"),
    "batch size": ({"batch_size": 0}, ValueError, r"batch_size=0 must be at least 1"),
    "pairs": (
        {"examples": [(X[0], 1), (X[1], 0)]},
        TypeError,
        r"expected each example to be an array, got a tuple of 2\. Of pairs \(x, y\), give the x alone",
    ),
    "pairs in a stream": ({"examples": iter([{"x": X[0]}])}, TypeError, r"got a dict of 1"),
    "ragged": (
        {"examples": [[[1.0], [1.0, 2.0]]]},
        ValueError,
        r"none of 1 examples can be read; the first: .*inhomog",
    ),
    "as many references": (
        {"reference": X[::-1]},
        ValueError,
        r"as many references as there are examples, 53: say .*'paired' .*'shared' .*, 2809 comparisons",
    ),
    "too few references": (
        {"reference": X[:3], "attr": jaxlift.attribute(scored.model, target=1, pairing="paired")},
        ValueError,
        r"has shape \(3, 40, 4\), but .* takes one reference for each of 53 examples: \(53, 40, 4\)",
    ),
    "seed": ({"reference": "dinucleotide_shuffle", "seed": 2**63}, ValueError, r"seed=\d+ must be a number of 64 bits"),
    "frequencies of real numbers": (
        {"examples": np.full((3, 5, 4), 2.0), "reference": "frequencies"},
        ValueError,
        r"one-hot along their channel axis, .* shape \(5, 4\), are not along axis -1; they are along no other either",
    ),
    "hypothetical scores of letters first": (
        {
            "examples": X.transpose(0, 2, 1),
            "attr": jaxlift.attribute(scored.letters_first, target=1, output="hypothetical"),
        },
        ValueError,
        r"hypothetical scores need .* they can be along another: channel_axis=-2",
    ),
    "no such axis": (
        {"attr": jaxlift.attribute(scored.model, target=1, output="hypothetical", channel_axis=2)},
        ValueError,
        r"channel_axis=2 is not an axis of examples of shape \(40, 4\): expected -2 to 1",
    ),
    "shuffles of letters first": (
        {
            "examples": X.transpose(0, 2, 1),
            "attr": jaxlift.attribute(scored.letters_first, target=1),
            "reference": "dinucleotide_shuffle",
        },
        ValueError,
        r"\(4, L\) with channel_axis=-2, got examples of shape \(4, 40\)",
    ),
    "memory": ({"batch_size": None, "memory": "much"}, ValueError, r"memory='much' must be a number of bytes"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_arguments(case, tmp_path):
    options, error, message = CASES[case]
    with pytest.raises(error, match=message):
        score(options.pop("examples", X), tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_files_that_are_not_clear(tmp_path):
    np.savez(tmp_path / "x.npz", a=X, b=X)
    with pytest.raises(ValueError, match=r"say which array: write .*x\.npz:NAME, with one of a, b"):
        score(tmp_path / "x.npz", tmp_path / "s")
    with pytest.raises(ValueError, match=r"there is no array 'c'"):
        score(f"{tmp_path}/x.npz:c", tmp_path / "s")
    np.savez(tmp_path / "f.npz", np.asfortranarray(X))
    with pytest.raises(ValueError, match=r"Fortran's order"):
        score(tmp_path / "f.npz", tmp_path / "s")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"expected \.npy, \.npz"):
        score(tmp_path / "x.txt", tmp_path / "s")
    (tmp_path / "x.fa").write_text("ACGT\n")
    with pytest.raises(ValueError, match=r"line 1: expected a FASTA record, which begins with '>', got 'ACGT'"):
        score(tmp_path / "x.fa", tmp_path / "s")


def test_memory_as_text():
    assert [as_bytes(text) for text in ("500MB", "4 GB", "2GiB", "1000", 7)] == [500 * 10**6, 4 * 10**9, 2**31, 1000, 7]


def test_extras_are_optional(tmp_path):
    """Importing jaxlift doesn't import them, and one that is missed is named."""
    imported = "import sys, jaxlift; print(*{'zarr', 'tqdm', 'h5py', 'matplotlib', 'xarray'} & set(sys.modules))"
    hidden = "sys.modules['zarr'] = None; import numpy as np"
    run = "jaxlift.score(jaxlift.attribute(lambda x: x.sum(1)), np.ones((2, 2)), reference='zeros', out='never')"
    code = [sys.executable, "-c", f"{imported}; {hidden}; {run}"]
    result = subprocess.run(code, capture_output=True, text=True, env=environment(), check=False, cwd=tmp_path)
    assert result.stdout.strip() == ""
    assert not list(tmp_path.iterdir())
    assert "this needs zarr, which is not installed: pip install 'jaxlift[scoring]'" in result.stderr


def environment(**more):
    """Of a process that finds the tests' models and the jaxlift that is tested."""
    cache = {f"JAX_{name.removeprefix('jax_').upper()}": str(value) for name, value in CACHE.items()}
    folders = [str(Path(__file__).parent), str(Path(jaxlift.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    same_bits = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # as in conftest.py
    path = {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    return os.environ | path | same_bits | cache | more


def started(*arguments, folder, first="", **more):
    """A process that runs the command."""
    code = f"{first}\nimport sys; from jaxlift.commands._main import main; sys.exit(main({list(arguments)!r}))"
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment(**more), **output)


def command(*arguments, folder, first=""):
    process = started(*arguments, folder=folder, first=first)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@pytest.mark.parametrize("precision", ["highest", "high", None])
def test_the_model_is_traced_at_the_precision(tmp_path, precision):
    """Under a rule that leaves its products to JAX, too."""
    seen = set()

    def model(x):
        seen.add(jax.config.jax_default_matmul_precision)
        return jnp.tanh(x).sum((1, 2))

    explain = jaxlift.attribute(model, rule="gradient", precision=precision)
    score(np.ones((2, 4, 3), np.float32), tmp_path / "scores", attr=explain)
    assert seen == {precision}


def wait_for_a_chunk(out, process):
    """Until the process has finished a chunk of the store, or has ended."""
    before = {*out.glob("checksum/c.*")}
    while process.poll() is None and not {*out.glob("checksum/c.*")} - before:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.systems)])
def test_killed_at_random_moments(times, tmp_path):
    """Wherever it is; then the same bits as if nothing had happened."""
    np.save(tmp_path / "x.npy", scored.sequences(2000))
    arguments = ["score", "scored:model", "x.npy", "--target", "1", "--reference", "dinucleotide_shuffle", "--quiet"]
    arguments += ["--shuffles", "10", "--batch-size", "4"]
    assert command(*arguments, "--out", "compiled", folder=tmp_path).returncode == 0
    with started(*arguments, "--out", "whole", folder=tmp_path) as process:
        began = time.monotonic()
        wait_for_a_chunk(tmp_path / "whole", process)
        starting, begun = time.monotonic() - began, time.monotonic()
        assert process.wait(120) == 0, process.stderr.read()
        working = time.monotonic() - begun
    whole, kills, moments, shares = tmp_path / "whole", 0, random.Random(0), []
    for attempt in itertools.count():
        out = tmp_path / f"killed-{attempt}"
        for _ in range(100):
            with started(*arguments, "--out", out.name, folder=tmp_path) as process:
                # Most of a short run is its start. So that kills come in the middle of the work too, however busy the
                # machine is, of three all but one are counted from where the work begins.
                if kills % 3 and kills < times:
                    wait_for_a_chunk(out, process)
                    moment = moments.uniform(0, working)
                else:
                    moment = moments.uniform(0, starting) if kills < times else 120
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment)
                if process.poll() is not None:
                    assert process.returncode == 0, process.stderr.read()
                    break
                process.send_signal(signal.SIGKILL)
            kills += 1
            if (out / "checksum" / "zarr.json").exists():  # what there is can be read, and is right
                found, wanted = read_after_a_kill(out), read(whole)
                done = found["status"] == Status.SCORED
                shares.append(done.mean())
                for name in found.keys() - {"checksum"}:
                    values = found[name]
                    np.testing.assert_array_equal(values[done], wanted[name][done])
        same(out, whole)
        if kills >= times:
            break
    assert len({share for share in shares if 0 < share < 1}) > times // 6  # some kills did come in the middle


@pytest.mark.slow
def test_two_processes_share_a_store(tmp_path):
    """Each with four devices. Killed in the middle, both go on; one alone does too."""
    np.save(tmp_path / "x.npy", scored.sequences(1000))
    score(tmp_path / "x.npy", tmp_path / "mean", reference="mean")
    arguments = ["score", "scored:model", "x.npy", "--target", "1", "--batch-size", "4"]
    shuffles = ["--reference", "dinucleotide_shuffle", "--shuffles", "40"]  # slow enough to be killed
    assert command(*arguments, *shuffles, "--out", "whole", folder=tmp_path).returncode == 0

    def pair(out, *reference, of_second=()):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        four = "import jax; jax.config.update('jax_num_cpu_devices', 4)"
        own = ["--distributed", "--coordinator", coordinator, "--processes", "2", "--out", out]
        return [
            started(*arguments, *reference, *own, "--process", str(i), *(of_second * i), folder=tmp_path, first=four)
            for i in range(2)
        ]

    processes = pair("two", "--reference", "mean")
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for i, (out, _) in enumerate(outputs):
        assert f"shard {i}/2: " in out
    same(tmp_path / "two", tmp_path / "mean")
    store = Store(tmp_path / "two", mode="r")
    assert {(run["shard"], run["devices"]) for run in store.runs} == {("0/2", 4), ("1/2", 4)}
    assert store.sealed["scored"] == 1000

    processes = pair("killed", *shuffles)
    while not any(file.name[2:3].isdigit() for file in tmp_path.glob("killed/checksum/c.*")):  # the first of sixteen
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.001)
    for process in processes:
        process.kill()
        process.communicate(timeout=300)
    assert 0 < np.mean(read(tmp_path / "killed")["status"] == Status.SCORED) < 1
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    processes = pair("killed", *shuffles)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert command(*arguments, *shuffles, "--out", "alone", folder=tmp_path).returncode == 0
    for out in ("killed", "alone"):
        same(tmp_path / out, tmp_path / "whole")

    # A store that the first process can't have: the other is told, and neither waits for ever.
    with lock(tmp_path / "busy", Shard()):
        processes = pair("busy", "--reference", "mean")
        outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [75, 2], outputs
    assert not (tmp_path / "busy").exists()

    # One that can't begin, for its settings are others, or its model can't be imported: both end at once.
    for own, code in ((["--target", "2"], 2), (["--rule", "missing:rule"], 2)):
        processes = pair("two", "--reference", "mean", of_second=own)
        outputs = [process.communicate(timeout=100) for process in processes]
        assert [process.returncode for process in processes] == [2, code], outputs
        assert "another process of this run has failed" in outputs[0][1]

    assert json.loads(command("info", "two", "--json", folder=tmp_path).stdout)["scored"] == 1000
