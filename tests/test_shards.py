"""Shards: parts of a run that know nothing of each other; and what a store says of what it lacks."""

import itertools
import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scored
import zarr
from test_scoring import X, command, read, same, score, started

import jaxlift
from jaxlift.commands._main import main
from jaxlift.scoring import Status, StoreError, _shards
from jaxlift.scoring._shards import Shard, lock, read_shard
from jaxlift.scoring._store import Store

MANY = scored.sequences(1024, seed=3)  # 16 chunks of 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "s"
    score(MANY, path)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


class TestShards:
    def test_in_any_order_and_by_another_number(self, tmp_path, whole):
        summaries = [score(MANY, tmp_path / "s", shard=shard) for shard in ((3, 4), "0/4", (1, 4))]
        assert [(summary.shard, summary.examples, summary.scored) for summary in summaries] == [
            ("3/4", 256, 256),
            ("0/4", 256, 256),
            ("1/4", 256, 256),
        ]
        assert not any(summary.is_finished for summary in summaries)
        assert "shard 1/4: 256 of 256 examples scored" in str(summaries[2])
        assert "which is not finished" in str(summaries[2])
        store = Store(tmp_path / "s", mode="r")
        assert sorted(store.finished()) == [0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15]
        assert store.sealed is None
        first, second = (score(MANY, tmp_path / "s", shard=(index, 2)) for index in (1, 0))
        assert (first.computed, second.computed) == (0, 256)
        assert second.is_finished
        assert Store(tmp_path / "s", mode="r").sealed["scored"] == len(MANY)
        same(tmp_path / "s", whole)
        assert score(MANY, tmp_path / "s").computed == 0

    def test_each_chunk_has_one_owner(self):
        for count in (1, 2, 3, 7):
            owners = [[chunk for chunk in range(50) if Shard(index, count).owns(chunk)] for index in range(count)]
            assert sorted(itertools.chain(*owners)) == list(range(50))

    def test_together(self, tmp_path, whole):
        """Four at once make one store; two of them with other settings are refused, if they come second."""
        np.save(tmp_path / "x.npy", MANY)
        arguments = ["score", "scored:model", "x.npy", "--target", "1", "--quiet", "--batch-size", "4"]
        processes = [started(*arguments, "--shard", f"{index}/4", folder=tmp_path) for index in range(4)]
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * 4, outputs
        same(tmp_path / "scores.zarr", whole)
        store = Store(tmp_path / "scores.zarr", mode="r")
        assert sorted(run["shard"] for run in store.runs) == ["0/4", "1/4", "2/4", "3/4"]
        assert all("ended" in run for run in store.runs)
        assert store.sealed is not None

    def test_more_shards_than_chunks(self, tmp_path):
        summaries = [score(X[:5], tmp_path / "s", shard=(index, 3)) for index in range(3)]
        assert [summary.examples for summary in summaries] == [4, 1, 0]
        assert summaries[2].is_finished

    def test_locks_are_of_shards(self, tmp_path):
        with lock(tmp_path / "s", Shard(1, 4)):
            with pytest.raises(StoreError, match="another run works on"):
                score(MANY, tmp_path / "s")
            with pytest.raises(StoreError, match="another run works on"):
                score(MANY, tmp_path / "s", shard=(1, 4))
            assert score(MANY, tmp_path / "s", shard=(2, 4)).scored == 256
        assert score(MANY, tmp_path / "s", shard=(1, 4)).scored == 256

    @pytest.mark.slow
    def test_locks_of_other_processes(self, tmp_path):
        np.save(tmp_path / "x.npy", X)
        arguments = ["score", "scored:model", "x.npy", "--target", "1", "--quiet", "--out", "s"]
        with lock(tmp_path / "s", Shard(1, 2)):
            assert command(*arguments, "--shard", "1/2", folder=tmp_path).returncode == 75
            assert command(*arguments, folder=tmp_path).returncode == 75
            assert command(*arguments, "--shard", "0/2", folder=tmp_path).returncode == 0

    @pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP"])
    def test_without_locks(self, tmp_path, monkeypatch, code):
        """As on some network file systems: nothing depends on them."""
        import errno
        import fcntl

        def lockf(*_):
            raise OSError(getattr(errno, code), "no locks here")

        monkeypatch.setattr(fcntl, "lockf", lockf)
        assert score(X, tmp_path / "s").scored == 53

    @pytest.mark.slow
    def test_two_runs_of_one_shard_write_the_same(self, tmp_path, whole, monkeypatch):
        """Where there are no locks."""
        monkeypatch.setattr(_shards, "lock", lambda *_: warnings.catch_warnings())
        monkeypatch.setattr("jaxlift.scoring._score.lock", lambda *_: warnings.catch_warnings())
        threads = [threading.Thread(target=score, args=(MANY, tmp_path / "s")) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        same(tmp_path / "s", whole)

    def test_who_comes_second_takes_the_batches_of_the_first(self, tmp_path):
        score(MANY, tmp_path / "s", shard=(0, 2), batch_size=8)
        assert score(MANY, tmp_path / "s", shard=(1, 2), batch_size=None).is_finished
        with pytest.raises(StoreError, match="batch_size: the store has 8, this run 4"):
            score(MANY, tmp_path / "s", shard=(1, 2), batch_size=4)

    def test_made_by_two_at_once(self, tmp_path, monkeypatch):
        """Who loses takes what the winner made, and makes what that has not made yet."""
        create = Store.create
        lost = []

        def create_second(path, settings, *arguments, **more):
            if not lost:
                lost.append(create(path, settings | {"batch_size": 8}, *arguments, **more | {"chunk": 128}))
            return create(path, settings, *arguments, **more)

        monkeypatch.setattr(Store, "create", create_second)
        assert score(MANY, tmp_path / "s", batch_size=None).scored == len(MANY)
        store = Store(tmp_path / "s", mode="r")
        assert (store.chunk, store.settings["batch_size"], len(store.chunks)) == (128, 8, 8)

    def test_refused(self, tmp_path):
        for shard, message in (
            ((4, 4), "of 4 shards expected 0/4 to 3/4"),
            ("1 of 4", "expected a shard such as 0/4, auto or auto/4, got '1 of 4'"),
            ((1, 2, 3), "expected a shard"),
        ):
            with pytest.raises(ValueError, match=message):
                score(X, tmp_path / "s", shard=shard)
        with pytest.raises(ValueError, match="remove the store before"):
            score(X, tmp_path / "s", shard=(0, 2), overwrite=True)
        with pytest.raises(ValueError, match="has no length"):
            score(iter(X), tmp_path / "s", shard=(0, 2))
        assert not (tmp_path / "s").exists()


SLURM = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3"}


@pytest.mark.parametrize(
    ("environ", "given", "wanted"),
    [
        (SLURM | {"SLURM_ARRAY_TASK_ID": "2"}, "auto", "2/4"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_MAX": "7",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            "auto",
            "2/3",
        ),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "6"}, "auto/8", "6/8"),
        ({"BATCH_TASK_INDEX": "0", "BATCH_TASK_COUNT": "5"}, "auto", "0/5"),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "1", "AWS_BATCH_JOB_ARRAY_SIZE": "2"}, "auto", "1/2"),
        ({"CLOUD_RUN_TASK_INDEX": "1", "CLOUD_RUN_TASK_COUNT": "2"}, "auto", "1/2"),
        ({"JOB_COMPLETION_INDEX": "5"}, "auto/6", "5/6"),
        ({"PBS_ARRAY_INDEX": "8"}, "auto/8", "0/8"),
        ({"LSB_JOBINDEX": "1", "LSB_JOBINDEX_END": "10"}, "auto", "0/10"),
        ({"SGE_TASK_ID": "3", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "5", "SGE_TASK_STEPSIZE": "2"}, "auto", "1/3"),
        ({"SGE_TASK_ID": "undefined", "BATCH_TASK_INDEX": "1", "BATCH_TASK_COUNT": "3"}, "auto", "1/3"),
        ({"LSB_JOBINDEX": "0", "BATCH_TASK_INDEX": "1", "BATCH_TASK_COUNT": "3"}, "auto", "1/3"),
        ({"LSB_JOBINDEX": "0", "LSB_JOBINDEX_END": "0", "PBS_ARRAY_INDEX": "1"}, "auto/3", "1/3"),
    ],
)
def test_array_variables(environ, given, wanted):
    assert str(read_shard(given, environ)) == wanted


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "no scheduler says which task of an array this is"),
        ({"LSB_JOBINDEX": "0"}, "no scheduler says which task of an array this is"),
        ({"JOB_COMPLETION_INDEX": "5"}, "Kubernetes says that this is task 5 .* write auto/N"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "9",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_MAX": "9",
            },
            "the numbers of the 3 tasks of this Slurm array, 3 to 9, have gaps",
        ),
    ],
)
def test_array_variables_that_do_not_say_it(environ, message):
    with pytest.raises(ValueError, match=message):
        read_shard("auto", environ)


class TestInputThatChanges:
    def test_rows(self, tmp_path, copy):
        """In most rows, and those that a sample of 16 doesn't see."""
        x = MANY.copy()
        sampled = {round(i * (len(x) - 1) / 15) for i in range(16)}
        changed = [i for i in range(100, 300) if i not in sampled]
        x[changed] = x[changed][:, ::-1]
        before = read(copy)
        with pytest.raises(StoreError, match=rf"numpy.ndarray has changed .* others now: {changed[0]}, {changed[1]}, "):
            score(x, copy)
        np.testing.assert_equal(read(copy), before)
        store = zarr.open_group(copy)
        store["checksum"][5:] = 0  # as if it had been stopped before the others
        with pytest.raises(StoreError, match="has changed"):
            score(x, copy)
        assert (zarr.open_group(copy)["checksum"][5:] == 0).all()

    def test_rows_under_the_run(self, tmp_path, monkeypatch):
        np.save(tmp_path / "x.npy", MANY)
        write = Store.write

        def changing(self, chunk, rows):
            if chunk == 3:
                with open(tmp_path / "x.npy", "r+b") as file:  # which makes it no shorter for a moment
                    np.save(file, MANY[:, ::-1])
            write(self, chunk, rows)

        monkeypatch.setattr(Store, "write", changing)
        with pytest.raises(StoreError, match="was changed while this run read it"):
            score(tmp_path / "x.npy", tmp_path / "s")
        assert Store(tmp_path / "s", mode="r").sealed is None
        monkeypatch.undo()
        with pytest.raises(StoreError, match=r"made with other settings:\n  examples\.sample\.0|others now: 0, 1, 2"):
            score(tmp_path / "x.npy", tmp_path / "s")

    def test_references_of_a_function(self, tmp_path):
        def reference(x, shift=0):
            return np.roll(x, 1 + shift * (x[3, 0] == 1), 0)

        score(X, tmp_path / "s", reference=reference)
        assert score(X, tmp_path / "s", reference=reference).computed == 0
        reference.__defaults__ = (1,)
        with pytest.raises(StoreError, match="or their references, are others now"):
            score(X, tmp_path / "s", reference=reference)

    def test_references_of_a_file(self, tmp_path):
        given = X[::-1].copy()
        np.save(tmp_path / "r.npy", given)
        paired = jaxlift.attribute(scored.model, target=1, pairing="paired")
        score(X, tmp_path / "s", attr=paired, reference=tmp_path / "r.npy")
        given[5] = X[5]
        np.save(tmp_path / "r.npy", given)
        with pytest.raises(StoreError, match=r"others now: 5\."):
            score(X, tmp_path / "s", attr=paired, reference=tmp_path / "r.npy")

    def test_a_reference_that_was_edited_or_lost(self, tmp_path, copy):
        score(X, tmp_path / "s", reference="mean")
        for change in (
            lambda g: g["reference"].__setitem__(0, 1),
            lambda g: shutil.rmtree(tmp_path / "s" / "reference"),
        ):
            change(zarr.open_group(tmp_path / "s"))
            with pytest.raises(StoreError, match="reference"):
                score(X, tmp_path / "s", reference="mean")

    def test_what_was_bad_and_can_be_read_now(self, tmp_path):
        broken = [x if i != 7 else x[:3] for i, x in enumerate(X)]
        assert score(broken, tmp_path / "s").bad == {7: Status.MALFORMED}
        again = score(list(X), tmp_path / "s")
        assert (again.bad, again.computed) == ({}, 53)  # one chunk
        score(list(X), tmp_path / "whole")
        same(tmp_path / "s", tmp_path / "whole")

    def test_what_can_no_longer_be_read(self, tmp_path):
        score(list(X), tmp_path / "s")
        with pytest.raises(StoreError, match=r"others now: 7 \(expected an example of shape"):
            score([x if i != 7 else x[:3] for i, x in enumerate(X)], tmp_path / "s")

    def test_a_stream_that_has_grown(self, tmp_path):
        """The second run scores all that is new."""
        score(iter(MANY[:200]), tmp_path / "s")
        summary = score(iter(MANY[:300]), tmp_path / "s")
        assert (summary.scored, summary.bad) == (300, {})
        score(MANY[:300], tmp_path / "whole")
        same(tmp_path / "s", tmp_path / "whole")
        assert Store(tmp_path / "s", mode="r").sealed["examples"] == 300

    @pytest.mark.parametrize("count", [60, 100, 200, 299])
    def test_a_stream_that_has_shrunk(self, tmp_path, count):
        """It is refused, and the store stays what it was."""
        score(iter(MANY[:300]), tmp_path / "s")
        if count < 256:
            with pytest.raises(StoreError, match=f"ended after {count} examples, and more than that are scored"):
                score(iter(MANY[:count]), tmp_path / "s")
            assert len(Store(tmp_path / "s", mode="r").finished()) == 5
        assert main(["verify", str(tmp_path / "s")]) == 0

    def test_a_stream_that_has_changed(self, tmp_path):
        score(iter(MANY[:200]), tmp_path / "s")
        other = MANY[:300].copy()
        other[70] = other[71]
        with pytest.raises(StoreError, match=r"has changed .* others now: 70\."):
            score(iter(other), tmp_path / "s")

    def test_an_array_that_has_grown(self, tmp_path):
        score(X[:40], tmp_path / "s")
        with pytest.raises(StoreError, match=r"examples\.count: the store has 40, this run 53"):
            score(X, tmp_path / "s")


def damage(path, how):
    match how:
        case "deleted":
            path.unlink()
        case "emptied":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-3])
        case "of another chunk":
            path.write_bytes(path.with_name(path.name.replace("c.2", "c.3")).read_bytes())


def edited(path, change):
    meta = json.loads((path / "zarr.json").read_text())
    change(meta["attributes"]["jaxlift"])
    (path / "zarr.json").write_text(json.dumps(meta))


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "kind", "message"),
        [
            ("contributions", {"data_type": "float64"}, r"expected contributions to be float32 of .* got float64"),
            ("delta", {"shape": [4]}, r"expected delta to be float32 of shape \(1024\) .* got float32 of shape \(4,\)"),
            ("checksum", {"shape": [50, 7]}, "expected checksum to be uint32"),
        ],
    )
    def test_arrays_that_are_others(self, copy, capsys, name, kind, message):
        path = copy / name / "zarr.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | kind))
        for name in ("info", "verify"):
            assert main([name, str(copy)]) == 2
        with pytest.raises(StoreError, match=message):
            score(MANY, copy)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda meta: meta.update(format=2), "expected a store of format 3, got 2"),
            (lambda meta: meta["settings"].pop("in_turn"), "there are no settings of the run"),
            (lambda meta: meta.update(columns=[1]), "no right description of the arrays"),
            (lambda meta: meta.update(count=20), "is damaged: expected contributions"),
        ],
    )
    def test_metadata_that_are_others(self, copy, change, message):
        edited(copy, change)
        assert main(["verify", str(copy)]) == 2
        with pytest.raises(StoreError, match=message):
            score(MANY, copy)

    def test_records_of_runs_that_are_odd(self, copy, capsys):
        for number, record in enumerate(({"shard": "9/3"}, {"shard": "auto/3", "command": 5}, "text")):
            zarr.open_group(copy).require_group(f"runs/{number}").attrs["jaxlift"] = record
        zarr.open_group(copy)["checksum"][3] = 0
        assert main(["info", str(copy)]) == 0
        assert "1 of 16 chunks is not finished: 3" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "how"),
        [
            *(("contributions", how) for how in ("deleted", "emptied", "truncated", "of another chunk")),
            *((name, "deleted") for name in ("delta", "status", "input")),
            *(("checksum", how) for how in ("deleted", "truncated", "of another chunk")),
        ],
    )
    def test_is_found_and_scored_again(self, copy, whole, capsys, name, how):
        [path] = (copy / name).glob("c.2*")
        damage(path, how)
        assert main(["verify", str(copy)]) == 1
        out = capsys.readouterr().out
        assert "damaged: 2" in out or "not finished: 2" in out
        assert score(MANY, copy).computed == 64
        same(copy, whole)
        assert main(["verify", str(copy)]) == 0

    @pytest.mark.slow
    def test_bits(self, copy, capsys):
        """Wherever a bit is another one, some check says so: what is read is never silently something else."""
        rng = np.random.default_rng(0)
        files = sorted(path for path in copy.rglob("c.*") if path.parent.name not in ("reference",))
        wanted = read(copy)
        for path in rng.choice(files, 30):
            content = path.read_bytes()
            at, bit = rng.integers(len(content)), rng.integers(8)
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
            assert main(["verify", str(copy)]) == 1, (path, at, bit)
            path.write_bytes(content)
        np.testing.assert_equal(read(copy), wanted)
        assert main(["verify", str(copy)]) == 0

    def test_an_array_is_gone(self, copy):
        shutil.rmtree(copy / "delta")
        for arguments in (["info", str(copy)], ["verify", str(copy)]):
            assert main(arguments) == 2
        with pytest.raises(StoreError, match="is damaged: it has no array delta"):
            score(MANY, copy)

    @pytest.mark.slow
    def test_removed_or_replaced_while_a_run_works_on_it(self, tmp_path, whole, monkeypatch):
        write, put = Store.write, Store._put

        def loses(path, other=None):
            shutil.rmtree(path)
            if other is not None:
                shutil.copytree(other, path)

        for other, before in itertools.product((None, whole), ("writing", "the files are written")):

            def written(self, chunk, rows, other=other, before=before):
                if chunk == 3 and before == "writing":
                    loses(self.path, other)
                write(self, chunk, rows)

            def putting(self, chunk, rows, files, other=other, before=before):
                if chunk == 3 and before != "writing":
                    loses(self.path, other)
                put(self, chunk, rows, files)

            monkeypatch.setattr(Store, "write", written)
            monkeypatch.setattr(Store, "_put", putting)
            with pytest.raises(StoreError, match="was removed or replaced while this run worked on it"):
                score(MANY, tmp_path / "s")
            monkeypatch.undo()
            if other is None:
                assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
                assert score(MANY, tmp_path / "s").scored == len(MANY)
            else:
                assert score(MANY, tmp_path / "s").computed in (0, 64)  # of which the last may have come in between
            same(tmp_path / "s", whole)
            shutil.rmtree(tmp_path / "s")


class TestOverwriting:
    """What a run reads is not removed, however it is named."""

    def test_an_array_of_the_store(self, copy, tmp_path, capsys):
        with pytest.raises(StoreError, match="has what this run reads"):
            score(zarr.open_group(copy)["contributions"], copy, overwrite=True)
        options = ["--target", "1", "--out", str(copy), "--overwrite", "--progress", "none"]
        for examples in (f"{copy}:contributions", copy / "x.npy"):
            if isinstance(examples, Path):
                np.save(examples, X)
            assert main(["score", "scored:model", str(examples), *options]) == 2
            assert "has what this run reads" in capsys.readouterr().err
        with pytest.raises(StoreError, match="has what this run reads"):
            score(np.load(copy / "x.npy", mmap_mode="r"), copy, overwrite=True)
        assert (copy / "x.npy").exists()

    def test_a_model_that_fails_leaves_the_old_store(self, copy, whole):
        for change in ({"attr": jaxlift.attribute(scored.raises)}, {"reference": "typo"}, {"memory": 1}):
            with pytest.raises(Exception, match=r"broken|typo|one example takes"):
                score(MANY, copy, overwrite=True, batch_size=None, **change)
        same(copy, whole)
        assert [path.name for path in copy.parent.iterdir() if "old" in path.name] == []


class TestCommands:
    def test_info_says_what_lacks(self, tmp_path, capsys):
        for index in (0, 2):
            score(MANY, tmp_path / "s", shard=(index, 4))
        assert main(["info", str(tmp_path / "s")]) == 0
        out = capsys.readouterr().out
        assert "8 of 16 chunks are not finished: 1, 3, 5, 7, 9, 11, 13, 15" in out
        assert "of the last run's shards, 1/4 lacks 4, 3/4 lacks 4" in out
        assert main(["info", "--json", str(tmp_path / "s")]) == 0
        described = json.loads(capsys.readouterr().out)
        assert described["chunks"] == {"size": 64, "count": 16, "missing": [1, 3, 5, 7, 9, 11, 13, 15]}
        assert main(["finish", str(tmp_path / "s")]) == 1
        assert main(["verify", str(tmp_path / "s")]) == 1
        assert "not finished: 1, 3" in capsys.readouterr().out

    def test_finish(self, copy, capsys):
        group = zarr.open_group(copy)
        del group.attrs["finished"]
        assert main(["info", str(copy)]) == 0
        assert "`jaxlift finish` says so in the store" in capsys.readouterr().out
        assert main(["finish", str(copy)]) == 0
        assert zarr.open_group(copy).attrs["finished"]["scored"] == len(MANY)

    def test_a_stream_that_was_cut_off(self, tmp_path, capsys):
        def stopping():
            yield from MANY[:130]
            raise ConnectionError("lost")

        with pytest.raises(ConnectionError):
            score(stopping(), tmp_path / "s")
        for name in ("verify", "finish"):
            assert main([name, str(tmp_path / "s")]) == 1
        assert "no run has come to their end" in capsys.readouterr().out
        score(iter(MANY[:130]), tmp_path / "s")
        assert main(["verify", str(tmp_path / "s")]) == 0

    def test_no_store(self, tmp_path, capsys):
        for name in ("verify", "finish", "info"):
            assert main([name, str(tmp_path / "s")]) == 2
            assert "there is no store" in capsys.readouterr().err

    def test_shard_of_an_array(self, tmp_path, monkeypatch, capsys):
        np.save(tmp_path / "x.npy", X)
        monkeypatch.chdir(tmp_path)
        arguments = ["score", "scored:model", "x.npy", "--target", "1", "--progress", "none"]
        for name, value in (SLURM | {"SLURM_ARRAY_TASK_ID": "0"}).items():
            monkeypatch.setenv(name, value)
        assert main([*arguments, "--shard", "auto"]) == 0
        assert "shard 0/4: " in capsys.readouterr().out
        assert main([*arguments, "--shard", "9/4"]) == 2
        assert "expected 0/4 to 3/4" in capsys.readouterr().err
        assert main([*arguments, "--shard", "0/4", "--distributed"]) == 2
        assert "leave out --distributed" in capsys.readouterr().err

    def test_read_only(self, copy):
        if os.getuid() == 0:
            pytest.skip("root may write anywhere")
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert score(MANY, copy).computed == 0


def test_what_was_scored_is_what_was_read(tmp_path):
    """`input` is of the values and the references that each example was scored from, by CRC-32."""
    import zlib

    def reference(x):
        return np.stack([x[::-1], x * 0])

    score(X, tmp_path / "s", reference=reference)
    for i, crc in enumerate(read(tmp_path / "s")["input"]):
        made = reference(X[i]).astype(np.float32)
        assert crc == zlib.crc32(made.tobytes(), zlib.crc32(X[i].tobytes()))


def test_delta_of_all_shards(tmp_path):
    """A shard's summary is of its own examples, with their numbers."""
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    x[13] *= 1000
    explained = jaxlift.attribute(lambda x: jnp.tanh(x).sum(1) * (1 + jax.nn.relu(x[:, 0])), target=None)
    found = [score(x, tmp_path / "s", attr=explained, batch_size=1, shard=(i, 2)) for i in range(2)]
    deltas = np.abs(read(tmp_path / "s")["delta"])
    for summary in found:
        assert summary.largest_delta == deltas[summary.largest_at]


def test_many_bad_examples_are_not_all_listed(tmp_path, capsys):
    x = MANY.copy()
    x[:300, 0, 0] = np.nan
    assert len(score(x, tmp_path / "s", progress="lines").bad) == 300
    lines = capsys.readouterr().err.splitlines()
    assert sum("has a NaN" in line for line in lines) == 100
    assert sum("`jaxlift info --bad` lists them all" in line for line in lines) == 1


def test_without_hard_links(tmp_path, monkeypatch):
    """As on exFAT and some shared folders: of several who make a file, one does, all the same."""
    import errno

    from jaxlift.scoring._places import create

    def hardlink_to(self, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    assert create(tmp_path / "one", b"first")
    assert not create(tmp_path / "one", b"second")
    assert (tmp_path / "one").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert score(X, tmp_path / "s").scored == 53
