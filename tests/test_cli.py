"""The command ``jaxlift``: what it is given, what it prints, and how it ends."""

import gzip
import importlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import h5py
import jax
import matplotlib.image
import numpy as np
import pytest
import scored
import zarr
from test_scoring import compiled_once, environment, fasta, read, started

import jaxlift
from jaxlift.commands._main import COMMANDS, main
from jaxlift.commands._parser import imported_model, shown
from jaxlift.scoring import _progress

__all__ = ["compiled_once"]
X = scored.sequences(30)


@pytest.fixture
def run(typed):
    """The command, in a folder with the examples."""
    np.save("x.npy", X)
    return typed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What `score scored:model x.npy --target 1` leaves, copied to where a test can change it."""
    store = tmp_path_factory.mktemp("finished") / "scores.zarr"
    np.save(store.parent / "x.npy", X)
    attr = jaxlift.attribute(scored.model, target=1)
    jaxlift.score(attr, store.parent / "x.npy", out=store, reference="zeros", batch_size=4, progress="none")
    return lambda path: shutil.copytree(store, path)


def wanted(reference=0.0, **options):
    attr = jax.jit(jaxlift.attribute(scored.model, **{"target": 1} | options))
    return attr(X, reference=np.broadcast_to(np.asarray(reference, X.dtype), np.shape(reference) or (40, 4)))


def test_score_and_info(run):
    code, out, err = run("score scored:model x.npy --target 1 --batch-size 4")
    assert (code, err) == (0, "")
    assert "30 of 30 examples scored, 30 by this run" in out
    assert "compared with the reference zeros\n" in out
    assert "largest convergence delta" in out
    np.testing.assert_allclose(read("scores.zarr")["contributions"], wanted(), atol=1e-6)
    code, out, err = run("score scored:model x.npy --target 1 --batch-size 4")
    assert code == 0
    assert "30 of 30 examples scored, 0 by this run" in out
    assert "going on with" in err

    code, out, _ = run("info scores.zarr")
    assert code == 0
    for part in ("30 of 30 examples scored", "(30, 40, 4)", "scored:model", "Rescale()", "name zeros", "batch size: 4"):
        assert part in out
    assert out.count("run: ") == 1  # the other had nothing to do


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("scored:model --target 2 --rule gradient", {"target": 2, "rule": "gradient"}),
        ("scored:factory --target 0 --output hypothetical", {"target": 0, "output": "hypothetical"}),
        ("scored:factory --target scored:mean_output", {"target": scored.mean_output}),
        ("scored:model --target 1 --normalize-target", {"normalize_target": True}),
        ("scored:explained", {"rule": "gradient"}),
        ("scored:model --target all", {"target": "all"}),
    ],
)
def test_what_is_explained(run, given, options):
    model, _, more = given.partition(" ")
    assert run(f"score --quiet {model} x.npy {more} --batch-size 4") == (0, "", "")
    name = options.get("output", "contributions")
    np.testing.assert_allclose(read("scores.zarr")[name], wanted(**options), atol=1e-6)


def test_references(run):
    np.save("r.npy", np.flip(X, (1, 2)))
    given = "score scored:model x.npy --target 1 --batch-size 4 --quiet"
    assert run(f"{given} --reference scored:reverse_complement --out f")[0] == 0
    assert run(f"{given} --reference r.npy --paired --out p")[0] == 0
    reverse = wanted(np.flip(X, (1, 2)), pairing="paired")
    for out in "fp":
        np.testing.assert_allclose(read(out)["contributions"], reverse, atol=1e-6)


def test_bad_examples(run):
    x = X.copy()
    x[[4, 7]] = np.nan
    np.save("x.npy", x)
    code, out, err = run("score scored:model x.npy --target 1")
    assert code == 3
    assert "2 not finite: 4, 7" in out
    assert "example 4: the example has a NaN" in err
    assert run("info scores.zarr --bad") == (0, "4 not_finite\n7 not_finite\n", "")
    code, _, err = run("plot scores.zarr 7")
    assert code == 2
    assert "example 7 has no scores: not finite" in err


def damaged(name, folder):
    """A file that can't be used, or can in part: its name says how it came about."""
    fasta(folder / "x.fa", X[:5])
    records = (folder / "x.fa").read_bytes()
    buffer = io.BytesIO()
    np.savez(buffer, X)
    whole = {
        "npy": (folder / "x.npy").read_bytes(),
        "npz": buffer.getvalue(),
        "h5": b"",
        "gz": gzip.compress(records),
        "fa": records,
    }
    how, _, suffix = name.partition(".")
    if suffix == "h5":
        with h5py.File(folder / "whole.h5", "w") as file:
            file["x"] = X
        whole["h5"] = (folder / "whole.h5").read_bytes()
    content = whole.get(suffix.rpartition(".")[2], b"")
    match how:
        case "cut":
            content = content[: len(content) // 2]
        case "header":
            content = content[:40]
        case "empty":
            content = b""
        case "text":
            content = b"1 2 3\n"
        case "mac":
            content = content.replace(b"\n", b"\r")
        case "protein":
            content = b">one\nMKVLAAGIVGLLLAQWERTY\n" * 3
        case "single":
            return np.save(folder / name, X[0])
        case "first":  # letters first
            return np.save(folder / name, X.swapaxes(1, 2))
        case "labels":
            return np.save(folder / name, np.arange(30) % 7)
        case "three":
            return np.save(folder / name, X[:3])
        case "objects" if suffix == "npy":
            return np.save(folder / name, np.array([Bomb()]), allow_pickle=True)
        case "objects":
            return np.savez(folder / name, np.array([Bomb()]))
        case "pickle":
            content = pickle.dumps(Bomb())
        case "members":
            with zipfile.ZipFile(folder / name, "w") as archive:
                return archive.writestr("notes.txt", "none")
        case "array":
            return zarr.create_array(folder / name, data=X)
        case "nested":
            return zarr.open_group(folder / name, mode="w").create_array("a/x", data=X)
        case "broken":
            zarr.open_group(folder / name, mode="w").create_array("a/x", data=X)
            content = b'{"shape": ['
            name += "/a/x/zarr.json"
        case "folder":
            return (folder / name).mkdir()
        case "exits":
            content = b"import sys\nsys.exit(0)\n"
        case "needs":
            content = b"import nothing_of_this_name\n"
        case "syntax":
            content = b"def model(:\n"
        case "odd":
            content = ODD.encode()
    return (folder / name).write_bytes(content)


# Models, references and targets that aren't.
ODD = """
import jax, jax.numpy as jnp, numpy as np, scored

print("said while it is imported")

def nothing(x): return None
def text(x): return "scores"
def one_example(x): return scored.model(x).sum()
def whole_numbers(x): return x.argmax(-1).sum(-1)
def leaves_jax(x): return jax.pure_callback(np.sum, jax.ShapeDtypeStruct((1,), x.dtype), x)
def fails(x): raise ValueError("rule='own' isn't pairing='paired'")
def no_reference(x): raise KeyError("none")

class Rule: pass
"""


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


# What is given to `jaxlift`, with FILE for a file that `damaged` makes; its exit code; and what it says.
MESSAGES = [
    # The command and its options.
    ("score scored:model x.npy --refrence zeros", 2, "there is no --refrence zeros: did you mean --reference?"),
    ("score scored:model x.npy --xyz", 2, "there is no --xyz.\n`jaxlift score --help` has the options."),
    ("export s --narow a --narow b", 2, "there is no --narow a --narow b: did you mean --narrowpeak?\n"),
    ("scoer", 2, "invalid choice: 'scoer' (choose from"),
    ("score scored:model x.npy --target 1.0", 2, "--target: expected an output's number, such as 1, several"),
    ("score scored:model x.npy --batch-size 0", 2, "--batch-size: expected a whole number, 1 or more, got '0'"),
    ("score scored:model x.npy --shuffles some", 2, "--shuffles: expected a whole number, 1 or more, got 'some'"),
    ("score scored:model x.npy --output score", 2, "--output: invalid choice: 'score' (choose from 'contributions'"),
    ("plot scores.zarr 0 --positions x=", 2, "--positions: expected FROM:TO, two positions such as 10:60, got 'x='"),
    ("plot scores.zarr first", 2, "there is no store scores.zarr"),
    ("score scored:model x.npy --target 1 --memory lots", 2, "--memory lots must be a number of bytes, such as"),
    ("score scored:model x.npy --target 1 --memory 10", 2, "the budget is 10 bytes: give a larger --memory, or fewer"),
    (
        f"score scored:model x.npy --target 1 --reference dinucleotide_shuffle --seed {2**63}",
        2,
        f"--seed {2**63} must be a number of 64 bits",
    ),
    ("score scored:model - --target 1", 2, "- is the standard input or output, which can't be taken here: name a file"),
    ("score scored:model x.npy --target 1 --out -", 2, "- is the standard input or output"),
    ("info -", 2, "- is the standard input or output", "`jaxlift info --help` has the options."),
    ("export FILE FILE=nested.zarr", 2, "nested.zarr is a Zarr group, but not a store of scores"),
    # The model.
    (
        "score odd:nothing x.npy FILE=odd.py",
        2,
        "the model must return arrays, (N, ...) -> (N, ...), but",
        "None",
    ),
    (
        "score odd:text x.npy FILE=odd.py",
        2,
        "the model must return arrays",
        "it returned a str",
    ),
    ("score odd:one_example x.npy FILE=odd.py", 2, "has shape (). If the model takes one example and no batch, name a"),
    ("score odd:whole_numbers x.npy FILE=odd.py", 2, "the model's output has dtype int32, which has no differences"),
    (
        "score odd:leaves_jax x.npy FILE=odd.py",
        2,
        "`pure_callback` has no rule",
        "(..., missing_rule='derivative') in a",
    ),
    ("score odd:fails x.npy FILE=odd.py", 2, "the model failed. ValueError: rule='own' isn't pairing='paired'\nThe"),
    (
        "score scored:heads x.npy",
        2,
        "it returns a dict of 2 arrays. Choose with --head, or with --target package.module:function.",
    ),
    ("score scored:heads x.npy --head nine", 2, "jaxlift: the model's outputs have no head 'nine': there are 'counts'"),
    ("score syntax:model x.npy FILE=syntax.py", 2, "syntax.py, line 1: invalid syntax."),
    ("score nowhere:model x.npy", 2, "nowhere:model: there is no module nowhere, neither in this folder nor installed"),
    ("score needs:model x.npy FILE=needs.py", 2, "needs imports nothing_of_this_name, which is not installed"),
    ("score exits:model x.npy FILE=exits.py", 2, "exits:model calls sys.exit(0) when it is run: put what is for"),
    ("score scored:nothing x.npy", 2, "scored has no nothing: it has sequences, model, letters_first"),
    ("score scored:modle x.npy", 2, "scored has no modle: did you mean model?"),
    ("score scored x.npy", 2, "'scored' is no model: expected package.module:function, such as scored:model"),
    ("score scored.py x.npy", 2, "such as scored:model"),
    (
        "score x.npy x.npy",
        2,
        "'x.npy' is no model: expected package.module:function, of a function that loads this file",
    ),
    ("score scored:2 x.npy", 2, "'scored:2' is no model: expected package.module:function, of names"),
    ("score scored:LENGTH x.npy", 2, "'scored:LENGTH' is of type int, and no model: name a function (N, ...)"),
    ("score scored:WEIGHTS x.npy", 2, "'scored:WEIGHTS' is an array of shape (8, 3), and no model: name a function"),
    ("score scored:no_factory x.npy", 2, "it must return a model; it returned ndarray"),
    ("score scored:explained x.npy --target 1", 2, "says itself what is explained: leave out --target."),
    (
        "score scored:explained x.npy --paired --reference x.npy --channel-axis -2",
        2,
        "says itself what is explained: leave out --paired, --channel-axis.",
    ),
    # What is explained.
    ("score scored:model x.npy", 2, "with --target an int", "--target: an output's number"),
    ("score scored:model x.npy --target 9", 2, "target 9 is out of range: expected 0 to 2"),
    ("score scored:model x.npy --target 1 --rule recsale", 2, "--rule recsale is not a rule", "--rule: rescale, "),
    (
        "score scored:letters_first FILE --target 1 --output hypothetical FILE=first.npy",
        2,
        "first.npy, of shape (4, 40), are not along axis -1; they can be along another: --channel-axis -2.",
    ),
    (
        "score scored:letters_first FILE --target 1 --reference frequencies FILE=first.npy",
        2,
        "frequencies need examples that are one-hot along their channel axis",
    ),
    (
        "score scored:letters_first FILE --target 1 --reference dinucleotide_shuffle FILE=first.npy",
        2,
        "or (4, L) with --channel-axis -2, got examples of shape (4, 40)",
    ),
    (
        "score scored:model x.npy --target 1 --output hypothetical --channel-axis 5",
        2,
        "--channel-axis 5 is not an axis of examples of shape (40, 4): expected -2 to 1",
    ),
    ("score scored:model x.npy --target odd:text FILE=odd.py", 2, "the target must return arrays", "it returned a str"),
    ("score scored:model x.npy --target 1 --rule odd:Rule FILE=odd.py", 2, "--rule <class 'odd.Rule'> is not a rule"),
    (
        "score scored:model x.npy --target FILE FILE=labels.npy",
        2,
        "--target labels.npy: targets must be between 0 and 2",
    ),
    # The reference.
    ("score scored:model x.npy --target 1 --reference r.npy", 2, "a file, or a function; and there is no such file."),
    (
        "score scored:model x.npy --target 1 --reference odd:no_reference FILE=odd.py",
        2,
        "--reference odd:no_reference makes no reference of the first 16 examples (KeyError: 'none')",
    ),
    (
        "score scored:model x.npy --target 1 --reference 0.25,0.25,0.25,0.25 --paired",
        2,
        "--paired says how the references of an array go with the examples, but --reference 0.25,0.25,0.25,0.25 is",
    ),
    (
        "score scored:model x.npy --target 1 --reference none",
        2,
        "--reference none must be one of",
        "--reference: zeros",
    ),
    (
        "score scored:model x.npy --target 1 --shuffles 3 --seed 1",
        2,
        "--shuffles and --seed are for references that are drawn: give --reference dinucleotide_shuffle or",
    ),
    ("score scored:model x.npy --target 1 --reference dinucleotide", 2, "Did you mean 'dinucleotide_shuffle'?"),
    ("score scored:model x.npy --target 1 --shard auto", 2, "Write the shard, I/N, such as 0/8 for the first of eight"),
    ("score scored:model x.npy --target 1 --paired", 2, "--paired says how", "--reference zeros is none: leave one"),
    (
        "score scored:model x.npy --target 1 --shared --reference scored:reverse_complement",
        2,
        "--reference scored:reverse_complement is none",
    ),
    ("score scored:model x.npy --paired --shared", 2, "--shared: not allowed with argument --paired"),
    (
        "score scored:model x.npy --target 1 --reference x.npy",
        2,
        "x.npy has as many references as there are examples, 30: say --paired to compare each example with its own, or "
        "--shared to compare each with all of them, 900 comparisons.",
    ),
    (
        "score scored:model x.npy --target 1 --reference FILE --paired FILE=three.npy",
        2,
        "three.npy has shape (3, 40, 4), but --paired takes one reference for each of 30 examples: (30, 40, 4)",
    ),
    ("score scored:model x.npy --target 1 --reference FILE FILE=first.npy", 2, "doesn't fit 30 examples of shape"),
    ("score scored:model x.npy --target 1 --reference FILE FILE=cut.npy", 74, "cut.npy is cut short: an array of"),
    # Files of examples.
    ("score scored:model missing.npy --target 1", 2, "there is no file missing.npy"),
    ("score scored:model FILE FILE=notes.txt", 2, "notes.txt: expected .npy, .npz, .h5,"),
    ("score scored:model FILE FILE=cut.npy", 74, "takes 19328 bytes, and the file has 9664. Copy or save it again."),
    ("score scored:model FILE FILE=header.npy", 74, "header.npy is damaged, cut short, or no array that np.save wrote"),
    ("score scored:model FILE FILE=empty.npy", 74, "empty.npy is empty: expected an array, as np.save writes it"),
    (
        "score scored:model FILE FILE=text.npy",
        2,
        "text.npy is not an array in NumPy's format",
        "begins with b'1 2 3\\n'",
    ),
    (
        "score scored:model FILE FILE=objects.npy",
        2,
        "objects.npy has pickled Python objects (dtype object), which jaxlift",
    ),
    ("score scored:model FILE FILE=objects.npz", 2, "objects.npz:arr_0 has pickled Python objects"),
    ("score scored:model FILE FILE=pickle.npy", 2, "pickle.npy is not an array in NumPy's format"),
    ("score scored:model FILE FILE=cut.npz", 74, "cut.npz is damaged, cut short, or no file that np.savez wrote"),
    ("score scored:model FILE FILE=empty.npz", 74, "empty.npz is damaged, cut short, or"),
    ("score scored:model FILE FILE=members.npz", 2, "members.npz has no arrays"),
    ("score scored:model FILE FILE=cut.h5", 74, "cut.h5 is damaged, cut short, or no HDF5 file", "truncated file"),
    ("score scored:model FILE FILE=text.h5", 74, "text.h5 is damaged, cut short, or no HDF5 file"),
    ("score scored:model FILE FILE=cut.fa.gz", 74, "cut.fa.gz is damaged, cut short, or no FASTA file (EOFError"),
    ("score scored:model FILE FILE=text.fa", 2, "text.fa, line 1: expected a FASTA record, which begins with '>', got"),
    ("score scored:model FILE FILE=empty.fa", 2, "empty.fa: there is no sequence, no line that begins with '>'"),
    ("score scored:model FILE FILE=mac.fa", 2, "mac.fa, line 1: lines end with CR alone"),
    (
        "score scored:model FILE FILE=protein.fa",
        2,
        "protein.fa: expected DNA or RNA",
        "letter 'L' at position 4 is none",
    ),
    ("score scored:model FILE FILE=folder", 2, "folder is not a Zarr store: it has no zarr.json"),
    ("score scored:model FILE FILE=broken.zarr", 74, "broken.zarr/a/x/zarr.json is damaged, cut short, or no JSON"),
    ("score scored:model FILE:x FILE=nested.zarr", 2, "there is no array 'x': write nested.zarr:NAME, with one of a/x"),
    ("score scored:model x.npy:foo --target 1", 2, "x.npy has one array, and no names: write x.npy without ':foo'"),
    ("score scored:model FILE:foo FILE=whole.fa", 2, "whole.fa has one array, and no names"),
    ("score scored:model FILE:foo FILE=array.zarr", 2, "array.zarr has one array, and no names"),
    (
        "score scored:model FILE --target 1 FILE=single.npy",
        2,
        "the model failed. ",
        "The model was called with an example of single.npy, in a batch of shape (1, 4). The first axis of (40, 4)",
    ),
    (
        "score scored:letters_first FILE --target 1 FILE=whole.fa",
        2,
        "an example of whole.fa, in a batch of shape (1, 40, 4). Records are one-hot in the order ACGT, and most have",
        "With --channel-axis -2 they are (4, L).",
    ),
    # Stores.
    ("info nowhere", 2, "there is no store nowhere"),
    ("plot nowhere 0", 2, "there is no store nowhere"),
    ("info x.npy", 2, "x.npy is not a Zarr store"),
    ("info FILE FILE=array.zarr", 2, "array.zarr is a Zarr array, not a store of scores"),
    ("info FILE FILE=nested.zarr", 2, "nested.zarr is a Zarr group, but not a store of scores"),
    ("score scored:model x.npy --target 1 --out x.npy", 2, "x.npy is there, and is not a store of scores"),
    # Several processes.
    (
        "score scored:model x.npy --coordinator a:1",
        2,
        "--coordinator is for one of several processes: add --distributed",
    ),
    (
        "score scored:model x.npy --distributed --coordinator a:1 --processes 2 --process 2",
        2,
        "--process 2: expected 0 to 1, for --processes 2",
    ),
    (
        "score scored:model x.npy --distributed",
        2,
        "give --coordinator, --processes, --process too, as in --coordinator",
    ),
]


@pytest.mark.parametrize(("given", "code", "parts"), [(given, code, parts) for given, code, *parts in MESSAGES])
def test_messages(run, given, code, parts, tmp_path, monkeypatch, capsys):
    """Each says what was expected, what came and what to write, in the words of the command."""
    monkeypatch.setattr(jax.distributed, "initialize", no_scheduler)
    given, _, file = given.partition(" FILE=")
    if file:
        damaged(file, tmp_path)
    for name in ("exits", "needs", "odd"):
        sys.modules.pop(name, None)
    try:
        found, out, err = run(given.replace("FILE", file))
    except SystemExit as ended:
        (out, err), found = capsys.readouterr(), ended.code
    assert (found, out) == (code, ""), err
    for part in parts:
        assert part in err
    assert not re.search("Traceback|said while it is imported", err.removeprefix("said while it is imported\n"))
    assert not (tmp_path / "scores.zarr").exists()
    assert not (tmp_path / "unpickled").exists()


def no_scheduler(*given, **options):
    """What JAX raises where no scheduler is, before it connects to anything."""
    raise ValueError("coordinator_address should be defined.")


def test_distributed_alone():
    """JAX's own error, in a process that has computed nothing yet."""
    code = "from jaxlift.commands._main import main; raise SystemExit(main(['score', 'a:b', 'x', '--distributed']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 2
    assert "--distributed: no scheduler that JAX knows" in done.stderr


def test_version(run, capsys):
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0
    assert re.fullmatch(r"jaxlift \S+ \(jax \d\S+, Python 3\S+\)\n", capsys.readouterr().out)


def test_a_package_of_the_same_name_as_a_folder(run, tmp_path):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("from scored import model, reverse_complement\n")
    reference = "--reference own_package:reverse_complement --batch-size 4"
    assert run(f"score own_package:model x.npy --target 1 {reference} --quiet") == (0, "", "")
    np.testing.assert_allclose(
        read("scores.zarr")["output_reference"], jax.jit(scored.model)(np.flip(X, (1, 2)))[:, 1], rtol=1e-4, atol=1e-6
    )


def test_shared_references_as_many_as_examples(run):
    np.save("x.npy", X[:3])
    np.save("r.npy", X[3:6])
    assert run("score scored:model x.npy --target 1 --reference r.npy --shared --quiet --batch-size 4") == (0, "", "")
    outputs = np.asarray(jax.jit(scored.model)(X[3:6]))[:, 1]
    np.testing.assert_allclose(read("scores.zarr")["output_reference"], np.full(3, outputs.mean()), rtol=1e-4)


def test_letters_first(run, tmp_path):
    """The same scores as with the letters last, from a FASTA file and from an array, and the same picture."""
    fasta(tmp_path / "x.fa", X)
    np.save("first.npy", X.swapaxes(1, 2))
    options = "--target 1 --output hypothetical --reference frequencies --quiet --batch-size 4"
    assert run(f"score scored:model x.fa {options} --out last") == (0, "", "")
    for examples in ("first.npy", "x.fa"):
        given = f"score scored:letters_first {examples} {options} --channel-axis -2 --out first --overwrite"
        assert run(given) == (0, "", "")
        np.testing.assert_allclose(
            read("first")["hypothetical"].swapaxes(1, 2), read("last")["hypothetical"], atol=1e-6
        )
    pictures = [
        matplotlib.image.imread(run(f"plot {store} 0 --letters ACGT --positions 0:4 --out {store}.png")[1].strip())
        for store in ("first", "last")
    ]
    np.testing.assert_allclose(*pictures, atol=0.02)


@pytest.mark.parametrize(
    ("given", "written"), [("", "highest"), ("--precision high", "high"), ("--precision model", None)]
)
def test_precision(run, given, written):
    np.save("x.npy", X)
    assert run(f"score scored:model x.npy --target 1 --quiet {given}") == (0, "", "")
    settings = json.loads(run("info scores.zarr --json")[1])["settings"]
    assert settings["attribution"]["precision"] == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: [], "was made by another version of jaxlift"),
        (lambda meta: meta | {"format": 99}, "was made by another version of jaxlift"),
        (lambda meta: meta | {"settings": {}}, "no settings of the run"),
        (lambda meta: meta | {"chunk": 0}, "no right description of the arrays"),
        (lambda meta: meta | {"arrays": ["contributions", "status", "delta"]}, "no right description of the arrays"),
        (lambda meta: meta | {"columns": ["lost"]}, "no right description of the arrays"),
    ],
)
def test_damaged_metadata(run, finished, change, message):
    finished("scores.zarr")
    group = zarr.open_group("scores.zarr")
    group.attrs["jaxlift"] = change(group.attrs["jaxlift"])
    for command in ("info scores.zarr", "plot scores.zarr 0", "score scored:model x.npy --target 1"):
        code, out, err = run(command)
        assert (code, out) == (2, "")
        assert message in err


def test_nothing_acts_on_the_terminal(run, finished):
    finished("scores.zarr")
    group = zarr.open_group("scores.zarr")
    meta = group.attrs["jaxlift"]
    meta["settings"]["model"]["name"] = "\x1b[2J\x9b31m"
    group.attrs["jaxlift"] = meta
    [(_, record)] = group["runs"].groups()
    record.attrs["jaxlift"] = record.attrs["jaxlift"] | {"host": "\x1b[2J\x9b31m"}
    code, out, _ = run("info scores.zarr")
    assert code == 0
    assert out.count("\\x1b[2J\\x9b31m") == 2
    assert out.replace("\n", "").isprintable()
    assert shown("\x1b[1mfails\x1b[0m in \x1b[38;5;34mdense\x1b[0m") == "fails in dense"


def test_changed_settings(run, finished):
    finished("scores.zarr")
    code, _, err = run("score scored:model x.npy --target 2 --quiet")
    assert code == 2
    assert "attribution.target: the store has 1, this run 2" in err
    assert run("score scored:model x.npy --target 2 --quiet --overwrite")[0] == 0


def test_plots(run, tmp_path):
    fasta(tmp_path / "x.fa", X)
    rng = np.random.default_rng(0)
    for name, shape in {"image": (3, 8, 8, 1), "table": (3, 12), "video": (3, 2, 3, 4, 5)}.items():
        np.save(f"{name}.npy", rng.random(shape, np.float32))
    assert (
        run("score scored:model x.fa --target 1 --reference frequencies --out dna.zarr --quiet --batch-size 4")[0] == 0
    )
    for name in ("image", "table", "video"):
        assert run(f"score scored:total {name}.npy --out {name}.zarr --quiet --batch-size 4")[0] == 0
    for what in ("dna.zarr 3", "dna.zarr 4 --positions 10:20", "image.zarr 0", "table.zarr 2"):
        code, out, _ = run(f"plot {what}")
        assert code == 0
        picture = matplotlib.image.imread(out.strip())
        assert picture.std() > 0.01
    assert (tmp_path / "dna-3.png").exists()
    assert run("plot image.zarr 0 --out a.svg")[1] == "a.svg\n"
    assert run("plot image.zarr 5")[2] == "jaxlift: there is no example 5: the store has 3, from 0.\n"
    assert "no picture for scores of shape (2, 3, 4, 5)" in run("plot video.zarr 0")[2]
    assert run("plot image.zarr 1 --out a.pgn")[2].startswith(
        "jaxlift: --out a.pgn: there are no pictures of the format"
    )
    assert run("plot image.zarr 1 --out no/a.png") == (2, "", "jaxlift: no/a.png: No such file or directory\n")
    assert "positions 30:50 are not within" in run("plot dna.zarr 0 --positions 30:50")[2]
    assert "need scores of shape (L, 4)" in run("plot table.zarr 0 --letters ACGT")[2]


@pytest.mark.parametrize(("more", "title"), [("", "contributions"), (" --hypothetical", "hypothetical")])
def test_the_title_says_what_is_drawn(run, more, title, monkeypatch):
    run("score scored:model x.npy --target 1 --output hypothetical --quiet --batch-size 4")
    drawn, tracks = [], jaxlift.plot.tracks
    monkeypatch.setattr(
        jaxlift.plot, "tracks", lambda *args, **options: drawn.append(options) or tracks(*args, **options)
    )
    assert run(f"plot scores.zarr 3{more}")[0] == 0
    assert drawn[0]["title"] == f"example 3: {title}"


def test_a_model_that_is_explained_already(run):
    """It takes any arguments, as a factory without any may, but isn't one."""
    assert run("score scored:explained_already x.npy --out s --quiet --batch-size 4")[0] == 0
    assert run("info s --json")[1].count("RevealCancel") == 1


@pytest.mark.parametrize("arguments", ["", *(command.__name__.rpartition(".")[2] for command in COMMANDS)])
def test_help(run, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run(f"{arguments} --help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "usage: jaxlift" in out
    if arguments:
        assert re.search(r"\n\n[A-Z](.|\n)+\.\n\npositional arguments:", out)  # what it does
        assert "\nexit codes:\n    0  " in out
        assert max(map(len, out.splitlines())) < 130


WARNS = """
import warnings, scored

def model(x):
    for _ in range(2):
        warnings.warn("this is old:\\n  say pairing='paired'")
    return scored.model(x)
"""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("quiet", [False, True])
def test_warnings(run, tmp_path, quiet):
    """They are shown once, in a line, in the words of the command; and not where only errors are asked for."""
    (tmp_path / "warns.py").write_text(WARNS)
    sys.modules.pop("warns", None)
    code, _, err = run(f"score warns:model x.npy --target 1 --batch-size 4 {'--quiet' * quiet}")
    assert (code, err) == (0, "" if quiet else "jaxlift: warning: this is old: say --paired\n")


def test_what_a_model_prints_is_apart(run, tmp_path):
    (tmp_path / "prints.py").write_text(
        "from scored import model\nprint('loaded')\ndef make(): print('made'); return model"
    )
    sys.modules.pop("prints", None)
    code, out, err = run("score prints:make x.npy --target 1 --batch-size 4 --quiet")
    assert (code, out, err) == (0, "", "loaded\nmade\n")


def test_numbers_that_jax_does_not_have(run):
    np.save("long.npy", X.astype(np.longdouble))
    for name in ("x", "long"):
        assert run(f"score scored:model {name}.npy --target 1 --batch-size 4 --quiet --out {name}") == (0, "", "")
    np.testing.assert_array_equal(read("long")["contributions"], read("x")["contributions"])


@pytest.mark.parametrize("arguments", [["info", "scores.zarr"], ["--help"], ["info", "nowhere"]])
def test_nobody_reads_what_is_printed(tmp_path, finished, arguments):
    """As when `head` has had enough: nothing is said of it, and the exit code is that of other commands then."""
    finished(tmp_path / "scores.zarr")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "jaxlift", *arguments]
    options = {"stdout": writer, "stderr": writer if arguments[-1] == "nowhere" else subprocess.PIPE}
    done = subprocess.run(command, cwd=tmp_path, env=environment(PYTHONUNBUFFERED=""), check=False, **options)
    os.close(writer)
    assert (done.returncode, done.stderr or b"") == (128 + signal.SIGPIPE, b"")


def test_factories():
    assert imported_model("scored:model") is scored.model
    assert imported_model("scored:factory") is scored.model
    assert imported_model("jax.nn:relu") is jax.nn.relu
    with pytest.raises(ValueError, match="it must return a model; it returned ndarray"):
        imported_model("scored:no_factory")


class TestProgress:
    def test_lines(self, monkeypatch, capsys):
        clock = iter([0.0, 5.0, 12.0, 12.0, 30.0, 30.0])
        monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
        progress = _progress.Progress("auto", 1000)
        progress.begin(200)
        progress.update(50, 1e-6)  # too early for a line
        progress.update(70, 2e-6)
        progress.update(80, 1e-7)
        first, second = capsys.readouterr().err.splitlines()
        assert first == "jaxlift: 320 of 1000 (32.0%) examples, 10/s, 0:01:08 left, delta 2.0e-06"
        assert second == "jaxlift: 400 of 1000 (40.0%) examples, 6.667/s, 0:01:30 left, delta 2.0e-06"  # the largest

    def test_bar_and_quiet(self, capsys):
        bar = _progress.Progress("bar", 10)
        bar.begin(0)
        bar.update(5, 1e-6)
        bar.say("example 3: bad")
        bar.close()
        err = capsys.readouterr().err
        assert "5/10" in err
        assert "example 3: bad" in err
        quiet = _progress.Progress("none", 10)
        quiet.begin(0)
        quiet.update(5, 1e-6)
        quiet.say("example 3: bad")
        assert capsys.readouterr().err == ""


def test_stopped_by_a_signal(tmp_path):
    """As schedulers do it. What was computed is kept."""
    np.save(tmp_path / "x.npy", scored.sequences(50000))
    arguments = ["score", "scored:model", "x.npy", "--target", "1", "--batch-size", "4", "--quiet"]
    process = started(*arguments, folder=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("scores.zarr/checksum/c.*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    status = zarr.open(tmp_path / "scores.zarr")["status"][:]
    assert 0 < status.sum() < 50000
    kept = f"What is finished is valid, in {tmp_path / 'scores.zarr'}, {status.sum()} of 50000 examples; a chunk ("
    assert err.startswith(f"jaxlift: stopped\n{kept}")


def test_the_installed_command():
    """What the package's entry point calls is there."""
    scripts = tomllib.loads((scored.ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["jaxlift"].partition(":")
    assert getattr(importlib.import_module(module), name) is main
