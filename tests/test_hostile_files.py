"""Files that are damaged, that lead a reader astray, or that lie far away; and what rows of numbers are known by."""

import contextlib
import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import scored
import zarr
from test_scoring import compiled_once, fasta, score

from jaxlift.scoring._examples import checksums, open_examples

__all__ = ["compiled_once"]
X = scored.sequences(9)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_that_gets_shorter(tmp_path, order):
    """An error that names it, and no SIGBUS, as a map of it would have."""
    x = np.asarray(np.random.default_rng(0).normal(size=(5000, 6, 4)), order=order)
    path = tmp_path / "x.npy"
    np.save(path, x)
    with contextlib.closing(open_examples(path)) as examples:
        np.testing.assert_array_equal(examples.read(7, 1000).values, x[7:1000])
        np.testing.assert_array_equal(examples.row(4999), x[4999])
        os.truncate(path, 4096)
        with pytest.raises(OSError, match=r"x\.npy is damaged.* ends within examples 4000 to 4099"):
            examples.read(4000, 4100)


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.int64, ml_dtypes.bfloat16])
def test_checksums(dtype):
    x = np.random.default_rng(0).integers(0, 2, (5, 3, 4)).astype(dtype)
    y = np.arange(5.0)
    wanted = [zlib.crc32(b.tobytes(), zlib.crc32(a.tobytes())) for a, b in zip(x, y, strict=True)]
    for given in (x, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]):
        found = checksums(given, y)
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, wanted)


def test_checksums_of_nothing():
    assert checksums(np.zeros((0, 3)), np.zeros(0)).shape == (0,)
    np.testing.assert_array_equal(checksums(np.zeros((3, 0))), [0, 0, 0])


def external_storage(file):
    Path("secret").write_bytes(X.tobytes())
    file.create_dataset("x", X.shape, X.dtype, external=[(os.path.abspath("secret"), 0, h5py.h5f.UNLIMITED)])


def virtual(file, *source):
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource(*source, X.shape)
    file.create_virtual_dataset("x", layout)


def virtual_of_external_storage(file):
    external_storage(file)
    file.move("x", "y")
    virtual(file, ".", "y")


def circle(file):
    virtual(file, ".", "y")
    file.move("x", "y")
    virtual(file, ".", "y")


def linked(file, link):
    with h5py.File("other.h5", "w") as other:
        other["x"] = X
    file["x"] = link


# What is made of an HDF5 file, and what is said of it.
HDF5 = {
    "external storage": (external_storage, "x.h5:x has its numbers in another file, /"),
    "virtual": (lambda file: virtual(file, "other.h5", "x"), "x.h5:x has its numbers in another file, other.h5,"),
    "virtual of nothing": (lambda file: virtual(file, ".", "y"), "x.h5:x is made of y, which the file doesn't have"),
    "virtual of what is elsewhere": (virtual_of_external_storage, "x.h5:x has its numbers in another file, /"),
    "external link": (lambda f: linked(f, h5py.ExternalLink("other.h5", "/x")), "link to another file, other.h5:/x,"),
    "soft link": (lambda f: linked(f, h5py.SoftLink("/y")), "x.h5:x is a link to /y: write the name of the array"),
    "scalar": (lambda file: file.create_dataset("x", data=1.0), "expected an array of examples (N, ...), got a scalar"),
    "no numbers": (
        lambda file: file.create_dataset("x", (3, 0), "f4"),
        "with numbers in them, got an array of shape (3, 0)",
    ),
    "lists": (lambda f: f.create_dataset("x", (3,), h5py.vlen_dtype("f4")), "expected examples of numbers, got dtype"),
}


@pytest.mark.parametrize("name", HDF5)
def test_hdf5(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make, message = HDF5[name]
    with h5py.File("x.h5", "w") as file:
        make(file)
    for given in ("x.h5:x", tmp_path / "x.h5:x"):
        with pytest.raises((ValueError, TypeError, OSError)) as raised:
            open_examples(given)
        assert message in str(raised.value)


def test_hdf5_of_its_own_parts(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["y"] = X
        virtual(file, ".", "y")
    with contextlib.closing(open_examples(f"{tmp_path}/x.h5:x")) as examples:
        np.testing.assert_array_equal(examples.read(0, 9).values, X)


def test_hdf5_in_a_circle(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        circle(file)
    open_examples(f"{tmp_path}/x.h5:x").close()  # what HDF5 makes of it is up to HDF5


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text):
    """A file in NumPy's format with a header of one's own."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + bytes(640)


def of_shape(shape):
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}")


NPY = {
    "negative": (of_shape("(-1, 4)"), "x.npy is damaged, cut short, or no array that np.save wrote"),
    "truth value": (of_shape("(True, 4)"), "no array has the shape (True, 4)"),
    "huge": (of_shape(f"({2**63 - 1}, {2**63 - 1})"), "x.npy is cut short: an array of float32 of shape"),
    "code": (of_shape("__import__('os').mkdir('made')"), "x.npy is damaged, cut short, or no array"),
    "no numbers": (of_shape("(5, 0)"), "x.npy: expected examples with numbers in them, got an array of shape (5, 0)"),
    "text": (header("{'descr': '<U4', 'fortran_order': False, 'shape': (4, 4)}"), "numbers, got dtype <U4"),
    "dates": (header("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (4, 4)}"), "numbers, got dtype datetime64"),
    "complex": (header("{'descr': '<c8', 'fortran_order': False, 'shape': (4, 4)}"), "numbers, got dtype complex64"),
}


@pytest.mark.parametrize("name", NPY)
@pytest.mark.parametrize("packed", [False, True])
def test_npy(tmp_path, monkeypatch, name, packed):
    monkeypatch.chdir(tmp_path)
    content, message = NPY[name]
    if packed:
        with zipfile.ZipFile("x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
    else:
        Path("x.npy").write_bytes(content)
    with pytest.raises((ValueError, TypeError, OSError)) as raised:
        open_examples("x.npz" if packed else "x.npy")
    assert (message.replace("x.npy", "x.npz:x") if packed else message) in str(raised.value)
    assert not Path("made").exists()


@pytest.mark.parametrize("kind", [".npy", ".fa", ".fa.gz", ".npz", ".h5", ""])
def test_what_is_no_file(tmp_path, kind):
    (tmp_path / f"folder{kind}").mkdir()
    with pytest.raises(ValueError, match=f"folder{kind} is not a Zarr store"):
        open_examples(tmp_path / f"folder{kind}")
    os.mkfifo(tmp_path / f"x{kind}")
    with pytest.raises(ValueError, match=f"x{kind} is a pipe or a device"):
        open_examples(tmp_path / f"x{kind}")


# Members of an archive, and what is said of it; None if it can be read.
NPZ = {
    "twice": ([("x.npy", npy(X)), ("x.npy", npy(X[::-1]))], "x.npz has 2 arrays of the name x"),
    "cut short": ([("x.npy", npy(X)[:300])], "x.npz:x is cut short: an array of float32 of shape (9, 40, 4)"),
    "empty": ([("x.npy", b"")], "x.npz:x is empty"),
    "pickled": ([("x.npy", pickle.dumps(X))], "x.npz:x is not an array in NumPy's format"),
    "text": ([("x.txt", npy(X))], "x.npz has no arrays"),
    "Fortran's order": ([("x.npy", npy(np.asfortranarray(X)))], "save np.ascontiguousarray(array)"),
    "path": ([("../../x.npy", npy(X))], None),  # which is a name like others: nothing is unpacked
}


@pytest.mark.parametrize("name", NPZ)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz(tmp_path, name):
    members, message = NPZ[name]
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    with zipfile.ZipFile(inner / "x.npz", "w") as archive:
        for member, content in members:
            archive.writestr(member, content)
    if message is None:
        with contextlib.closing(open_examples(inner / "x.npz")) as examples:
            np.testing.assert_array_equal(examples.read(0, 9).values, X)
    else:
        with pytest.raises((ValueError, OSError)) as raised:
            open_examples(inner / "x.npz")
        assert message in str(raised.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.npz"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_in_an_archive(tmp_path, compression):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", npy(np.random.default_rng(0).random((64, 100), np.float32)))
    content = bytearray(path.read_bytes())
    content[9000] ^= 1
    path.write_bytes(content)
    with contextlib.closing(open_examples(path)) as examples, pytest.raises(OSError, match=r"x\.npz:x is damaged"):
        assert not any(examples.read(start, start + 8).messages for start in range(0, 64, 8))


def test_an_archive_that_says_it_is_larger_than_it_is(tmp_path):
    path, content = tmp_path / "x.npz", npy(X)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content[:3000])
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<I", 3000), struct.pack("<I", len(content))))
    with contextlib.closing(open_examples(path)) as examples:
        np.testing.assert_array_equal(examples.read(0, 4).values, X[:4])
        with pytest.raises(OSError, match=r"x\.npz:x is damaged.* ends within examples 4 to 8"):
            examples.read(4, 9)


def into_the_chunks(folder):
    chunk = folder / "x" / "c" / "0" / "0" / "0"
    chunk.rename(folder.parent / "chunk")
    chunk.symlink_to(folder.parent / "chunk")


def to_an_array(folder):
    (folder / "x").rename(folder.parent / "elsewhere")
    (folder / "x").symlink_to(folder.parent / "elsewhere")


def within(folder):
    (folder / "x").rename(folder / "y")
    (folder / "x").symlink_to(folder / "y")


@pytest.mark.parametrize("lead", [into_the_chunks, to_an_array])
def test_links_out_of_a_zarr_store(tmp_path, lead):
    zarr.open_group(tmp_path / "x.zarr", mode="w").create_array("x", data=X)
    lead(tmp_path / "x.zarr")
    with pytest.raises(ValueError, match=r"leads out of .*, to .*copy the store with what it links to"):
        open_examples(f"{tmp_path}/x.zarr:x")
    with pytest.raises(ValueError, match="leads out of"):
        score(X, tmp_path / "s", reference=f"{tmp_path}/x.zarr:x")
    assert not (tmp_path / "s").exists()


def test_links_within_a_zarr_store_and_to_it(tmp_path):
    zarr.open_group(tmp_path / "x.zarr", mode="w").create_array("x", data=X)
    within(tmp_path / "x.zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "x.zarr")
    np.testing.assert_array_equal(open_examples(f"{tmp_path}/link.zarr:x").read(0, 9).values, X)


def test_names_that_lead_out_of_a_zarr_store(tmp_path):
    zarr.open_group(tmp_path / "x.zarr", mode="w").create_array("x", data=X)
    zarr.create_array(tmp_path / "y.zarr", data=X)
    for name in ("../y.zarr", "x/../../y.zarr", "/"):
        with pytest.raises(ValueError, match=r"there is no array|say which"):
            open_examples(f"{tmp_path}/x.zarr:{name}")


def hdf5_far_away(path):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("peaks/x", data=X, chunks=(2, 40, 4), compression="gzip")
    path.write_bytes(buffer.getvalue())
    return f"{path}:peaks/x"


def npz_far_away(path):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(X))
        archive.writestr("y.npy", npy(X[::-1]))
    path.write_bytes(buffer.getvalue())
    return f"{path}:x"


def zarr_far_away(path):
    zarr.open_group(str(path), mode="w").create_array("a/x", data=X, chunks=(2, 40, 4))
    return f"{path}:a/x"


def written(path, content):
    path.write_bytes(content)
    return str(path)


FAR_AWAY = {
    "x.npy": lambda path, folder: written(path, npy(X)),
    "x.npz": lambda path, folder: npz_far_away(path),
    "x.h5": lambda path, folder: hdf5_far_away(path),
    "x.zarr": lambda path, folder: zarr_far_away(path),
    "x.fa": lambda path, folder: written(path, fasta(folder / "x.fa", X).read_bytes()),
    "x.fa.gz": lambda path, folder: written(path, fasta(folder / "x.fa.gz", X).read_bytes()),
}


@pytest.fixture
def far(request):
    """A folder elsewhere, of this test alone."""
    upath = pytest.importorskip("upath")
    folder = upath.UPath(f"memory://{request.node.name.translate({ord(c): '-' for c in '[]/'})}")
    yield folder
    if folder.exists():
        folder.fs.rm(folder.path, recursive=True)


@pytest.mark.parametrize("name", FAR_AWAY)
def test_by_url(tmp_path, far, name):
    given = FAR_AWAY[name](far / name, tmp_path)
    for each in (given, far / name) if given == str(far / name) else (given,):
        with contextlib.closing(open_examples(each)) as examples:
            assert examples.source == given
            np.testing.assert_array_equal(examples.read(2, 5).values, X[2:5])
            np.testing.assert_array_equal(examples.read(0, 100).values, X)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x.fa.gz"])
def test_damaged_by_url(tmp_path, far, name):
    given = FAR_AWAY[name](far / name, tmp_path)
    content = (far / name).read_bytes()
    for cut in (b"", content[: len(content) // 2], b"text"):
        (far / name).write_bytes(cut)
        with pytest.raises((ValueError, OSError)) as raised:
            open_examples(given)
        assert str(far / name) in str(raised.value)


def test_missing_by_url(far):
    with pytest.raises(FileNotFoundError, match=f"there is no file {far}/x.npy"):
        open_examples(f"{far}/x.npy")
    with pytest.raises((ValueError, OSError), match=r"nowhere://x\.npy"):
        open_examples("nowhere://x.npy")


def test_references_by_url(tmp_path, far):
    reference = np.random.default_rng(0).random((3, 40, 4), np.float32)
    score(X, tmp_path / "far", reference=written(far / "r.npy", npy(reference)))
    score(X, tmp_path / "here", reference=reference)
    far, here = (zarr.open_group(tmp_path / name)["contributions"][:] for name in ("far", "here"))
    np.testing.assert_array_equal(far, here)


def test_gzip_that_is_cut(tmp_path):
    path = fasta(tmp_path / "x.fa.gz", X)
    content = path.read_bytes()
    for cut in (content[:-9], content[: len(content) // 2], gzip.compress(b"")[:5]):
        path.write_bytes(cut)
        with pytest.raises(OSError, match=r"x\.fa\.gz is damaged"):
            open_examples(path)
