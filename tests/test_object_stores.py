"""Stores, examples and references at URLs of an S3 server: what comes of them is what comes of local files."""

import contextlib
import gc
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import s3
import scored
import test_scoring
import zarr
from test_scoring import X, command, compiled_once, fasta, read, same, score, started

import jaxlift
from jaxlift.scoring import Status, StoreError, _places
from jaxlift.scoring._examples import open_examples
from jaxlift.scoring._places import UnreachableError, create, place

__all__ = ["compiled_once"]
pytestmark = [
    # Zarr forgets some of its work where a request of it fails.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def server():
    with s3.serving() as server:
        yield server


MANY = scored.sequences(200)
former = []  # file systems of tests that are over: Zarr's have connections that nothing closes before Python ends


@pytest.fixture
def connect(monkeypatch):
    """Let what this test runs, here and in other processes, find a server, and no other one."""
    from s3fs import S3FileSystem

    def forget():
        former.extend(S3FileSystem._cache.values())
        S3FileSystem.clear_instance_cache()

    def connect(host, **others):
        forget()
        for name, value in (s3.environment(host) | {"AWS_MAX_ATTEMPTS": "1"} | others).items():
            monkeypatch.setenv(name, value)

    yield connect
    gc.collect()  # while what may come of it is expected
    forget()


@pytest.fixture
def url(server, connect, request):
    """A folder of the bucket that this test alone has."""
    connect(server.host)
    return f"{server.bucket}/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"


@pytest.fixture
def local(tmp_path):
    """The store of the same run on a disk."""
    score(X, tmp_path / "local.zarr")
    return tmp_path / "local.zarr"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store on a disk of examples that make several chunks, with their file beside it."""
    folder = tmp_path_factory.mktemp("whole")
    np.save(folder / "many.npy", MANY)
    score(folder / "many.npy", folder / "whole.zarr")
    return folder / "whole.zarr"


def size_of_chunks(out):
    return zarr.open_group(out, mode="r").attrs["jaxlift"]["chunk"]


def wait_for_a_chunk(server, out, process):
    """Until the process has finished a chunk, or has ended."""
    while process.poll() is None and not server.files.glob(f"{out}/checksum/c.*"):
        time.sleep(0.01)


@pytest.fixture
def run(typed):
    """The command, in a folder with the examples."""
    np.save("x.npy", X)
    np.save("many.npy", MANY)
    return typed


@pytest.mark.systems
def test_the_same_bits_as_on_a_disk(url, local):
    """And xarray reads them there."""
    xarray = pytest.importorskip("xarray")
    out = f"{url}/x.zarr"
    summary = score(X, out)
    assert (summary.computed, summary.is_finished, str(summary.path)) == (53, True, out)
    same(out, local)
    assert score(X, out).computed == 0
    with xarray.open_zarr(out, consolidated=False) as found:
        np.testing.assert_array_equal(found["contributions"], read(local)["contributions"])
        assert found["contributions"].dims == ("example", "position", "letter")


@pytest.mark.systems
def test_begun_anew(url, local):
    """What was there is gone, and what is not a store stays."""
    out = f"{url}/x.zarr"
    score(X[:20], out, reference="uniform")
    with pytest.raises(StoreError, match="reference"):
        score(X, out)
    assert score(X, out, overwrite=True).computed == 53
    same(out, local)
    place(f"{url}/other/file").write_text("hers")
    with pytest.raises(StoreError, match="not a store"):
        score(X, f"{url}/other", overwrite=True)
    assert place(f"{url}/other/file").read_text() == "hers"


@pytest.mark.systems
def test_a_stream(url, local):
    score(iter(X), f"{url}/x.zarr")
    found, wanted = read(f"{url}/x.zarr"), read(local)
    for name in ("contributions", "delta", "output", "status", "input"):
        np.testing.assert_array_equal(found[name], wanted[name])


FILES = [
    *(test_scoring.npy, test_scoring.npz, test_scoring.compressed, test_scoring.hdf5),
    *(test_scoring.zarr_array, test_scoring.zarr_group),
    lambda folder: fasta(folder / "x.fa", test_scoring.X),
    lambda folder: fasta(folder / "x.fa.gz", test_scoring.X),
]
KINDS = ["npy", "npz", "compressed", "hdf5", "array", "group", "fasta", "gzipped"]


@pytest.mark.parametrize("write", FILES, ids=KINDS)
@pytest.mark.systems
def test_examples_at_urls(url, server, tmp_path, write):
    """Of every kind that can be read from a disk."""
    at = write(tmp_path)
    score(at, tmp_path / "local.zarr")
    path, name = [*str(at).split(":"), None][:2]
    server.files.put(path, f"{url}/{place(path).name}", recursive=True)
    score(f"{url}/{place(path).name}" + (f":{name}" if name else ""), tmp_path / "far.zarr")
    same(tmp_path / "far.zarr", tmp_path / "local.zarr")


@pytest.mark.systems
def test_references_at_urls(url, tmp_path):
    """One for all, and each example's own."""
    paired = jaxlift.attribute(scored.model, target=1, pairing="paired")
    for name, reference, attr in (("one", X[0], test_scoring.attr), ("own", X[::-1], paired)):
        np.save(tmp_path / f"{name}.npy", reference)
        place(f"{url}/{name}.npy").write_bytes((tmp_path / f"{name}.npy").read_bytes())
        score(X, tmp_path / f"{name}.zarr", reference=tmp_path / f"{name}.npy", attr=attr)
        score(X, f"{url}/{name}.zarr", reference=f"{url}/{name}.npy", attr=attr)
        same(f"{url}/{name}.zarr", tmp_path / f"{name}.zarr")


@pytest.mark.systems
def test_regions_at_a_url(url, run, tmp_path):
    """The genome is on the disk, for its windows are read in any order; the list of what was kept goes to the store."""
    (tmp_path / "genome.fa").write_text(">chr1\n" + "".join(np.random.default_rng(0).choice([*"ACGT"], 900)) + "\n")
    bed = "chr1\t100\t140\tone\nchr1\t300\t340\ttwo\nchr1\t890\t930\tout\n"
    (tmp_path / "peaks.bed").write_text(bed)
    place(f"{url}/peaks.bed").write_text(bed)
    given = "score scored:model genome.fa --target 1 --batch-size 4 --quiet"
    assert run(f"{given} --regions peaks.bed --out local.zarr")[0] == 0
    assert run(f"{given} --regions {url}/peaks.bed --out {url}/x.zarr")[0] == 0
    same(f"{url}/x.zarr", tmp_path / "local.zarr")
    assert place(f"{url}/x.kept.bed").read_text() == (tmp_path / "local.kept.bed").read_text()

    place(f"{url}/genome.fa").write_bytes((tmp_path / "genome.fa").read_bytes())
    code, _, err = run(f"{given.replace('genome.fa', f'{url}/genome.fa')} --regions peaks.bed --out no.zarr")
    assert code == 2
    assert f"{url}/genome.fa must be a file of this machine" in err


@pytest.mark.systems
def test_all_commands(url, run, tmp_path):
    given = "score scored:model x.npy --target 1 --batch-size 4 --output hypothetical"
    said = {}
    near = str(tmp_path / "local.zarr")
    for out in (near, f"{url}/x.zarr"):
        code, text, err = run(f"{given} --out {out}")
        assert (code, err) == (0, "")
        assert f"result in {out}" in text
        said[out] = {}
        for each in ("info {} --bad", "verify {}", "finish {}", "export {} --h5 {}.h5", "plot {} 3 --out {}.png"):
            code, text, err = run(each.replace("{}", out))
            assert (code, err) == (0, ""), each
            said[out][each] = text.replace(out, "STORE")
    assert said[near] == said[f"{url}/x.zarr"]
    info = run(f"info {url}/x.zarr")[1]
    assert "53 of 53 examples scored" in info
    assert info.count("run: ") == 1
    with place(f"{url}/x.zarr.h5").open("rb") as file, h5py.File(file) as far, h5py.File(f"{near}.h5") as at_hand:
        for name in ("raw/seq", "shap/seq", "projected_shap/seq"):
            np.testing.assert_array_equal(far[name], at_hand[name])
    assert place(f"{url}/x.zarr.png").read_bytes() == (tmp_path / "local.zarr.png").read_bytes()


@pytest.mark.systems
def test_damaged_and_lost_objects(url, server, run, whole):
    """`verify` names them, and the same command scores them again."""
    store = f"{url}/x.zarr"
    given = f"score scored:model many.npy --target 1 --batch-size 4 --out {store} --quiet"
    assert run(given)[0] == 0
    files, last = server.files, 199 // size_of_chunks(store)
    assert last > 1
    damaged = f"{store}/contributions/c.{last}.0.0"
    data = bytearray(files.cat_file(damaged))
    data[len(data) // 2] ^= 1
    files.pipe_file(damaged, bytes(data))
    code, out, _ = run(f"verify {store}")
    assert code == 1
    assert f"1 of {last + 1} finished chunks are damaged: {last}\n" in out
    files.rm_file(f"{store}/checksum/c.0.0")
    code, out, _ = run(f"info {store}")
    assert code == 0
    assert f"1 of {last + 1} chunks are not finished: 0\n" in out
    assert run(given)[0] == 0
    assert run(f"verify {store}")[0] == 0
    same(store, whole)


@pytest.mark.systems
def test_one_of_many_creates(url):
    """Each with bytes of its own: one is told that it made the object, and what it wrote is what all find."""
    together, path = threading.Barrier(4), place(f"{url}/file")

    def attempt(number):
        together.wait()
        return create(path, bytes([number]) * 1000)

    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(attempt, range(4)))
    assert sum(won) == 1
    assert path.read_bytes() == bytes([won.index(True)]) * 1000


@pytest.mark.systems
def test_two_shards_at_once(url, whole):
    """Processes that know nothing of each other, and begin at the same time where there is no store yet."""
    out = f"{url}/x.zarr"
    given = ["score", "scored:model", "many.npy", "--target", "1", "--batch-size", "4", "--out", out, "--quiet"]
    both = [started(*given, "--shard", f"{index}/2", folder=whole.parent) for index in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
    wanted = read(whole)
    for name in wanted.keys() - {"checksum"}:  # which is of chunks, that are smaller where there are shards
        np.testing.assert_array_equal(read(out)[name], wanted[name])
    found = zarr.open_group(out, mode="r")
    assert "finished" in found.attrs
    assert sorted(run.attrs["jaxlift"]["shard"] for _, run in found["runs"].groups()) == ["0/2", "1/2"]


@pytest.mark.systems
def test_two_creators_of_different_stores(url, local):
    """One wins; the other is told by name what differs."""
    np.save(local.parent / "x.npy", X)
    out = f"{url}/x.zarr"
    given = ["score", "scored:model", "x.npy", "--target", "1", "--out", out, "--quiet", "--batch-size"]
    both = [started(*given, size, folder=local.parent) for size in "45"]
    said = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    won = codes.index(0)
    assert said[won] == ""
    for part in (out, f"batch_size: the store has {4 + won}, this run {5 - won}"):
        assert part in said[1 - won]
    assert zarr.open_group(out, mode="r").attrs["jaxlift"]["settings"]["batch_size"] == 4 + won
    assert (read(out)["status"] == Status.SCORED).all()
    if won == 0:
        same(out, local)


@pytest.mark.systems
def test_killed_and_gone_on_with(url, server, tmp_path):
    """In the middle of its work."""
    np.save(tmp_path / "x.npy", scored.sequences(600))
    given = ["score", "scored:model", "x.npy", "--target", "1", "--batch-size", "4", "--quiet", "--out"]
    assert command(*given, "local.zarr", folder=tmp_path).returncode == 0
    whole, out = read(tmp_path / "local.zarr"), f"{url}/x.zarr"
    with started(*given, out, folder=tmp_path) as process:
        wait_for_a_chunk(server, out, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    found = read(out)  # what there is can be read, and is right
    done = found["checksum"].any(1)
    assert 0 < done.sum() < len(done)
    rows = np.repeat(done, size_of_chunks(out))[:600]
    for name in ("contributions", "delta", "output", "status", "input"):
        np.testing.assert_array_equal(found[name][rows], whole[name][rows])
    ended = command(*given, out, folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    same(out, tmp_path / "local.zarr")


class Fails:
    """Lets so many requests pass that match, and then none of them."""

    def __init__(self, method, pattern, after):
        self.method, self.pattern, self.left = method, re.compile(pattern), after

    def __call__(self, method, path):
        if method != self.method or not self.pattern.search(path):
            return True
        self.left -= 1
        return self.left >= 0


@pytest.mark.parametrize(
    "fails",
    [
        Fails("PUT", r"/contributions/c\.", 2),
        Fails("PUT", r"/checksum/c\.", 1),
        Fails("PUT", r"/zarr\.json", 4),
        Fails("GET", r"/x\.zarr/zarr\.json", 6),
    ],
    ids=["scores", "checksum", "creation", "reading"],
)
@pytest.mark.systems
def test_a_server_that_fails(url, server, connect, run, whole, fails):
    """The error says where and what; what is finished stays, and the same command does the rest."""
    given = f"score scored:model many.npy --target 1 --batch-size 4 --out {url}/x.zarr"
    with s3.failing(server, fails) as host:
        connect(host)
        code, _, err = run(given)
    assert code == 74, err
    assert f"{url}/x.zarr" in err
    assert "Traceback" not in err
    connect(server.host)
    assert run(f"info {url}/x.zarr")[0] in (0, 2)
    assert run(given)[0] == 0
    same(f"{url}/x.zarr", whole)


@pytest.mark.systems
def test_examples_that_fail_to_come(url, server, connect, run):
    """They are not bad, and must not be marked as such."""
    zarr.create_array(f"{url}/x.zarr", data=X, chunks=(10, 40, 4))
    given = f"score scored:model {url}/x.zarr --target 1 --batch-size 4"
    with s3.failing(server, Fails("GET", r"/x\.zarr/c/3", 1)) as host:
        connect(host)
        code, _, err = run(f"{given} --out scores.zarr")
    assert code == 74, err
    assert f"{url}/x.zarr" in err
    connect(server.host)
    code, out, _ = run(f"{given} --out scores.zarr")
    assert code == 0
    assert "53 of 53 examples scored" in out


def plain_hdf5(folder):
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = test_scoring.X
    return folder / "x.h5"


@pytest.mark.parametrize("write", [test_scoring.npy, plain_hdf5, FILES[-2]], ids=["npy", "hdf5", "fasta"])
@pytest.mark.systems
def test_a_file_that_fails_to_come(url, server, connect, tmp_path, monkeypatch, write):
    """In the middle: of large files, since they come in pieces."""
    monkeypatch.setattr(_places, "PIECE", 2**14)
    monkeypatch.setattr(test_scoring, "X", scored.sequences(30_000))
    path, name = [*str(write(tmp_path)).split(":"), None][:2]
    far = f"{url}/{place(path).name}"
    server.files.put(path, far)
    is_up = True
    with s3.failing(server, lambda *_: is_up) as host:
        connect(host)
        with contextlib.closing(open_examples(far + (f":{name}" if name else ""))) as examples:
            assert (examples.read(20_000, 20_004).values == test_scoring.X[20_000:20_004]).all()
            is_up = False
            with pytest.raises(UnreachableError, match=far):
                examples.read(2, 6)


@pytest.mark.systems
def test_a_store_that_fails_to_come_is_not_damaged(url, server, connect, run, local):
    """Neither to `verify` nor to a run that goes on."""
    shutil.copytree(local, "scores.zarr")
    server.files.put("scores.zarr", f"{url}/x.zarr", recursive=True)
    given = f"score scored:model x.npy --target 1 --batch-size 4 --out {url}/x.zarr"
    assert run(given)[0] == 0
    with s3.failing(server, Fails("GET", r"/contributions/c\.", 0)) as host:
        connect(host)
        for each in (f"verify {url}/x.zarr", given, f"plot {url}/x.zarr 3 --out x.png"):
            code, out, err = run(each)
            assert code == 74, (each, out, err)
            assert f"{url}/x.zarr" in err
            assert "damaged:" not in out + err


@pytest.mark.systems
def test_a_server_that_is_killed(url, server, tmp_path):
    np.save(tmp_path / "x.npy", scored.sequences(2000))
    out = f"{url}/x.zarr"
    given = ["score", "scored:model", "x.npy", "--target", "1", "--batch-size", "4", "--out", out]
    process = started(*given, "--quiet", folder=tmp_path)
    wait_for_a_chunk(server, out, process)
    server.kill()
    try:
        _, err = process.communicate(timeout=300)
    finally:
        server.start()
    assert process.returncode == 74, err
    assert out in err
    assert "Traceback" not in err
    again = command(*given, folder=tmp_path)
    assert again.returncode == 0
    assert "2000 of 2000 examples scored" in again.stdout
    computed = int(re.search(r"(\d+) by this run", again.stdout)[1])
    assert 0 < computed < 2000


@pytest.mark.parametrize("what", ["score", "info"])
@pytest.mark.parametrize(
    ("case", "code", "parts"),
    [
        ("no bucket", 2, ["s3://nobody-has-this/x.zarr"]),
        ("wrong secret", 74, ["AWS_SECRET_ACCESS_KEY"]),
        ("no credentials", 74, ["credentials"]),
        ("no server", 74, ["127.0.0.1:1"]),
    ],
)
@pytest.mark.systems
def test_what_is_wrong_is_said_in_a_line(server, connect, run, monkeypatch, what, case, code, parts):
    """And names the URL."""
    host = "127.0.0.1:1" if case == "no server" else server.host
    connect(host, **({"AWS_SECRET_ACCESS_KEY": "wrong"} if case == "wrong secret" else {}))
    if case == "no credentials":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    out = "s3://nobody-has-this/x.zarr" if case == "no bucket" else f"{server.bucket}/wrong.zarr"
    given = f"score scored:model x.npy --target 1 --batch-size 4 --quiet --out {out}"
    found, _, err = run(given if what == "score" else f"info {out}")
    assert found == code, err
    assert len(err.splitlines()) == 1, err
    for part in (out, *parts):
        assert part in err


@pytest.mark.parametrize("missing", ["upath", "s3fs"])
@pytest.mark.systems
def test_the_extra_is_named(tmp_path, missing):
    ended = command("info", "s3://tests/x.zarr", folder=tmp_path, first=f"import sys; sys.modules[{missing!r}] = None")
    assert ended.returncode == 2
    assert "pip install 'jaxlift[cloud]'" in ended.stderr
    assert "Traceback" not in ended.stderr
