"""A power cut loses at most the chunk that is being written, and tears none in silence.

Runs are watched down to the system calls, by strace or as the file system that they write to. From the calls,
`power_cut` makes what a disk may hold after a cut at any of them. All that was finished before must be there, what is
called finished must be what undisturbed runs come to, and the same command must come to the same bits. Without any one
of the syncs these checks fail: that is a test too.
"""

import contextlib
import functools
import io
import os
import random
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import scored
from power_cut import CUTS, Disk, Power, lay, mounted, ops_of, strace
from test_scoring import compiled_once, environment, read, read_after_a_kill, score

from jaxlift.commands._main import main
from jaxlift.scoring._store import Store

assert compiled_once  # a fixture of this module, too

COUNT, CHUNKS = 300, 5  # of which the last is not full
OUT = "new/s"  # in a folder that the run has to make
COMMAND = "import sys; from jaxlift.commands._main import main; sys.exit(main(sys.argv[1:]))"
STREAM = """
import jax, jaxlift, numpy as np, scored, sys
attr = jaxlift.attribute(scored.model, target=1)
options = {"reference": "zeros", "batch_size": 4, "devices": jax.local_devices()[:1], "progress": "none"}
jaxlift.score(attr, iter(np.load(sys.argv[1])), out=sys.argv[2], **options)
"""


def arguments(folder, out, *more):
    given = ["score", "scored:model", folder / "x.npy", "--target", 1, "--reference", "zeros", "--batch-size", 4]
    return [*map(str, given), "--quiet", "--out", str(out), *more]


def alone(folder, out):
    return [sys.executable, "-c", COMMAND, *arguments(folder, out)]


def stream(folder, out):
    return [sys.executable, "-c", STREAM, str(folder / "x.npy"), str(out)]


def shards(folder, out):
    """Two at the same time."""
    both = " & ".join(f'"$@" --shard {shard}/2' for shard in range(2))
    return ["sh", "-c", f"{both} & wait", "sh", *alone(folder, out)]


def mending(folder, out):
    """What was bad can be used now, and is scored where its chunk was finished."""
    return alone(folder, out)


def again(kind, folder, out):
    """The same run, in this process."""
    if kind is stream:
        score(iter(np.load(folder / "x.npy")), out)
    else:
        assert said(*arguments(folder, out))[0] == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("durability").resolve()
    x = scored.sequences(COUNT)
    np.save(folder / "x.npy", x)
    x[[70, 200]] = np.nan
    (folder / "bad").mkdir()
    np.save(folder / "bad" / "x.npy", x)
    return folder


@pytest.fixture(scope="module")
def whole(folder, compiled_once):
    """What an undisturbed run comes to."""
    assert said(*arguments(folder, folder / "whole"))[0] == 0
    return read(folder / "whole")


@pytest.fixture(scope="module")
def bad(folder, whole):
    """A store of which two chunks have an example that was bad."""
    assert said(*arguments(folder / "bad", folder / "bad" / "s"))[0] == 3
    return folder / "bad" / "s"


@pytest.fixture(scope="module")
def watched(folder, bad):
    """What was on the disk before a run, and what the run asked of it, as strace saw that."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    tried = subprocess.run([*strace(os.devnull), "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace can't watch processes here: {tried.stderr}")

    @functools.cache
    def watched(kind):
        root, log = folder / f"disk-{kind.__name__}", folder / f"{kind.__name__}.strace"
        root.mkdir()
        if kind is mending:
            shutil.copytree(bad, root / OUT)
        before = tree_of(root)
        subprocess.run([*strace(log), *kind(folder, root / OUT)], check=True, env=environment(), timeout=300)
        ops = ops_of(log, root)
        assert all_of(before, ops) == tree_of(root)  # all that changed files was seen
        return before, ops

    return watched


def all_of(before, ops):
    disk = Disk(before)
    for op in ops:
        disk.do(op)
    return disk.after(CUTS["all of it"], random.Random(0))


def tree_of(folder):
    return {path.name: tree_of(path) if path.is_dir() else path.read_bytes() for path in sorted(folder.iterdir())}


@contextlib.contextmanager
def on_disk(tree, folder):
    """A state of the disk, as a folder."""
    lay(tree, folder / "state")
    try:
        yield folder / "state" / OUT
    finally:
        shutil.rmtree(folder / "state")


def promised(disk, kind):
    """The chunks that are finished as programs see it, but for each shard's last: it may be on its way to the disk."""
    try:
        rows = disk.find(f"{OUT}/checksum").live
    except FileNotFoundError:
        return set()
    names = [re.fullmatch(r"c\.(\d+)\.0", name) for name, row in rows.items() if any(row.live)]
    chunks, count = [int(name[1]) for name in names if name], 2 if kind is shards else 1
    return {chunk for shard in range(count) for chunk in [c for c in chunks if c % count == shard][:-1]}


def states(before, ops, kind, dice, moments):
    """What cuts at some moments may leave, each with what had been promised; none twice. At the end that is all."""
    disk, seen = Disk(before), set()
    for moment, op in enumerate(ops):
        disk.do(op)
        if moment in moments:
            for name, cut in CUTS.items():
                tree, is_end = disk.after(cut, dice), moment == len(ops) - 1
                promise = {*range(CHUNKS)} if is_end else promised(disk, kind)
                if (state := repr((tree, promise))) not in seen:
                    seen.add(state)
                    yield f"{name} at {moment}, {op.kind} {op.path}", promise, tree


def same_bits(one, two):
    return one.shape == two.shape and one.tobytes() == two.tobytes()


def check(out, promise, whole, *others):
    """Whether a store has what was promised, and calls nothing finished but what is as in one of some stores."""
    if not (out / "zarr.json").exists() or not Store(out, "r").is_complete:
        assert not promise, "all is gone"
        return
    store = Store(out, "r")
    finished = store.finished()
    assert promise <= finished, f"chunks {promise - finished} are gone"
    for chunk in finished:
        rows, at = store.read(chunk), slice(chunk * store.chunk, (chunk + 1) * store.chunk)
        different = [{name for name in rows if not same_bits(rows[name], one[name][at])} for one in (whole, *others)]
        assert not all(different), f"chunk {chunk}: {different}"
        assert store.valid(chunk) is not None
    is_whole = finished == {*store.chunks} and store.is_ended
    assert is_whole or not store.sealed
    assert said("verify", out)[0] == (not is_whole), said("verify", out)
    assert said("info", out)[0] == 0, said("info", out)


def said(*command):
    """The exit code and the text of a command."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = main([*map(str, command)])
    return code, text.getvalue()


def check_again(kind, folder, out, whole):
    """Whether the same run again comes to the same bits."""
    again(kind, folder, out)
    check(out, {*Store(out, "r").chunks}, whole)  # a store made anew may have others: this process has more devices
    found = read(out)
    assert found.keys() == whole.keys()
    np.testing.assert_array_equal(found["reference"], whole["reference"])


def test_any_cut(folder, watched, whole, tmp_path):
    look(*watched(alone), alone, folder, tmp_path, 0.005, 2, whole)


def test_killed_at_any_moment(watched, tmp_path):
    """From when all arrays are there, whoever reads with zarr finds whole nodes: warnings are errors."""
    before, ops = watched(alone)
    disk, seen = Disk(before), []
    for op in ops:
        disk.do(op)
        tree = disk.after(CUTS["all of it"], random.Random(0))
        nodes = nodes_of(tree)
        if nodes.get(f"{OUT}/checksum") and nodes not in seen:
            seen.append(nodes)
            with on_disk(tree, tmp_path) as out, noted(f"{op.kind} {op.path}"):
                read_after_a_kill(out)
    assert len(seen) >= 3  # the arrays, the folder of a run, and its record


def nodes_of(tree, above=""):
    """The folders of a tree by their paths, and whether each is a node of Zarr."""
    nodes = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            nodes[above + name] = "zarr.json" in node
            nodes |= nodes_of(node, f"{above}{name}/")
    return nodes


@pytest.mark.systems
@pytest.mark.parametrize("kind", [alone, stream, shards, mending])
def test_many_cuts(kind, folder, watched, whole, bad, tmp_path):
    look(*watched(kind), kind, folder, tmp_path, 0.06, 20, whole, *([read(bad)] if kind is mending else []))


def look(before, ops, kind, folder, tmp_path, share, runs, whole, *others):
    """Check some of the states that cuts may leave, and go on from some of those."""
    dice = random.Random(0)
    moments = {len(ops) - 1, *(moment for moment in range(len(ops)) if dice.random() < share)}
    looked_at = [*states(before, ops, kind, dice, moments)]
    to_run = {*dice.sample(range(len(looked_at)), runs)}
    for number, (name, promise, tree) in enumerate(looked_at):
        with on_disk(tree, tmp_path) as out, noted(name):
            check(out, promise, whole, *others)
            if number in to_run:
                check_again(kind, folder, out, whole)


@contextlib.contextmanager
def noted(name):
    try:
        yield
    except BaseException as error:
        error.add_note(f"after a cut: {name}")
        raise


SYNCS = {
    "the store's folder": "new",
    "the folder that has a new folder": r"\.",
    "the names of the arrays": OUT,
    "the metadata of the store": rf"{OUT}/zarr\.json.*|new/\.s\..*",
    "the metadata of an array": rf"{OUT}/status/zarr\.json.*",
    "a file of a chunk": rf"{OUT}/input/c\..*",
    "a name of a chunk": rf"{OUT}/contributions",
    "a row of checksums": rf"{OUT}/checksum/c\..*",
    "the names of rows of checksums": rf"{OUT}/checksum",
}


@pytest.mark.parametrize("left_out", SYNCS)
@pytest.mark.systems
def test_no_sync_is_one_too_many(left_out, watched, whole, tmp_path):
    """A store that leaves one kind out, and is the same otherwise, does not pass."""

    def fails(promise, tree):
        with on_disk(tree, tmp_path) as out:
            try:
                check(out, promise, whole)
            except Exception:  # that it can't be read is a failure too
                return True
        return False

    before, ops = watched(alone)
    ops = without(ops, SYNCS[left_out])
    looked_at = states(before, ops, alone, random.Random(0), {len(ops) - 1})
    assert any(fails(promise, tree) for _, promise, tree in looked_at)


def without(ops, path):
    fewer = [op for op in ops if op.kind != "sync" or not re.fullmatch(path, op.path)]
    assert len(fewer) < len(ops)
    return fewer


@pytest.mark.systems
@pytest.mark.parametrize("unsynced", [".*", rf"{OUT}/(?!checksum)\w+/c\..*"])
def test_checksums_find_what_no_sync_kept(unsynced, folder, watched, whole, tmp_path):
    """On a disk that syncs nothing, whatever it says: a run comes to the same bits, or fails."""
    before, ops = watched(alone)
    ops = without(ops, unsynced)
    torn = mended = 0
    for name, _, tree in states(before, ops, alone, random.Random(0), {len(ops) - 1}):
        with on_disk(tree, tmp_path) as out, noted(name):
            with contextlib.suppress(Exception):  # that it can't be read is no silence
                store = Store(out, "r")
                torn += sum(store.valid(chunk) is None for chunk in store.finished())
            if said(*arguments(folder, out))[0] == 0:
                mended += 1
                check(out, {*range(CHUNKS)}, whole)
    assert mended
    assert torn or unsynced == ".*"


@pytest.fixture(scope="module")
def mountable(tmp_path_factory):
    """Skip where a file system of ours can't be mounted."""
    try:
        with mounted(Power(), tmp_path_factory.mktemp("mount")):
            pass
    except (ImportError, OSError) as error:
        pytest.skip(f"needs mfusepy and libfuse, and the right to mount: {error}")


def cut_often(cuts, folder, whole, tmp_path):
    """Real runs on a file system that loses power, `cuts` times and more: at the latest when the run has ended."""
    dice, done, mount = random.Random(0), 0, tmp_path / "mount"
    mount.mkdir()
    while done < cuts:
        tree, is_finished = {}, False
        while not is_finished:
            power = Power(tree, dice.randrange(1, 300) if done < cuts else None)
            with mounted(power, mount):
                process = subprocess.Popen(
                    alone(folder, mount / OUT), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                while process.poll() is None and not power.off.is_set():
                    time.sleep(0.01)
                is_finished = not power.off.is_set()
                process.kill()
                text, _ = process.communicate(timeout=60)
            assert process.returncode == 0 or not is_finished, text.decode()
            name = dice.choice([*CUTS])
            promise = {*range(CHUNKS)} if is_finished else promised(power.disk, alone)
            tree = power.disk.after(CUTS[name], dice)
            with on_disk(tree, tmp_path) as out, noted(f"{name} at {power.last}"):
                check(out, promise, whole)
            done += 1


@pytest.mark.systems
def test_real_cut(folder, whole, mountable, tmp_path):
    cut_often(1, folder, whole, tmp_path)


@pytest.mark.systems
def test_thirty_real_cuts(folder, whole, mountable, tmp_path):
    cut_often(30, folder, whole, tmp_path)
