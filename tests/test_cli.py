"""The command ``jaxlift``: what it is given, what it prints, and how it ends."""

import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import scored
import zarr
from test_scoring import compiled_once, fasta, read, started

import jaxlift
from jaxlift.scoring import _progress
from jaxlift.scoring._cli import imported_model, main

__all__ = ["compiled_once"]
X = scored.sequences(30)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command, in this process, in a folder with the examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    np.save("x.npy", X)

    def run(text):
        code = main(text.split())
        out, err = capsys.readouterr()
        return code, out, err

    return run


def wanted(reference=0.0, **options):
    attr = jax.jit(jaxlift.attribute(scored.model, **{"target": 1} | options))
    return attr(
        jnp.asarray(X), reference=jnp.broadcast_to(jnp.asarray(reference, X.dtype), np.shape(reference) or (40, 4))
    )


def test_score_and_info(run):
    code, out, err = run("score scored:model x.npy --target 1 --batch-size 4")
    assert (code, err) == (0, "")
    assert "30 of 30 examples scored, 30 by this run" in out
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
    assert out.count("run: ") == 2


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
    assert run(f"score --quiet {model} x.npy {more}") == (0, "", "")
    name = options.get("output", "contributions")
    np.testing.assert_allclose(read("scores.zarr")[name], wanted(**options), atol=1e-6)


def test_references(run):
    np.save("r.npy", np.flip(X, (1, 2)))
    assert run("score scored:model x.npy --target 1 --reference scored:reverse_complement --out f --quiet")[0] == 0
    assert run("score scored:model x.npy --target 1 --reference r.npy --paired --out p --quiet")[0] == 0
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("scored:model missing.npy --target 1", "there is no file missing.npy"),
        ("scored:nothing x.npy", "scored has no nothing"),
        ("nowhere:model x.npy", "No module named 'nowhere'"),
        ("scored x.npy", "'scored' is no model"),
        ("scored:LENGTH x.npy", "'scored:LENGTH' is no model"),
        ("scored:model x.npy", "say which is explained"),
        ("scored:model x.npy --target 9", "target 9 is out of range"),
        ("scored:model x.npy --target 1 --rule recsale", "'recsale'"),
        ("scored:model x.npy --target 1 --reference none", "'none' must be one of"),
        ("scored:explained x.npy --target 1", "leave out --target"),
        ("scored:model x.npy --target 1 --memory lots", "memory='lots'"),
    ],
)
def test_what_can_not_be_carried_out(run, given, message, tmp_path):
    code, out, err = run(f"score {given}")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "scores.zarr").exists()


def test_changed_settings(run):
    assert run("score scored:model x.npy --target 1 --quiet")[0] == 0
    code, _, err = run("score scored:model x.npy --target 2 --quiet")
    assert code == 2
    assert "attribution.target: the store has 1, this run 2" in err
    assert run("score scored:model x.npy --target 2 --quiet --overwrite")[0] == 0


def test_not_a_store(run):
    for what in ("info nowhere", "plot nowhere 0"):
        code, _, err = run(what)
        assert code == 2
        assert "there is no store nowhere" in err


def test_plots(run, tmp_path):
    fasta(tmp_path / "x.fa", X)
    rng = np.random.default_rng(0)
    for name, shape in {"image": (3, 8, 8, 1), "table": (3, 12), "video": (3, 2, 3, 4, 5)}.items():
        np.save(f"{name}.npy", rng.random(shape, np.float32))
    assert run("score scored:model x.fa --target 1 --reference frequencies --out dna.zarr --quiet")[0] == 0
    for name in ("image", "table", "video"):
        assert run(f"score scored:total {name}.npy --out {name}.zarr --quiet")[0] == 0
    for what in ("dna.zarr 3", "dna.zarr 4 --positions 10:20", "image.zarr 0", "table.zarr 2"):
        code, out, _ = run(f"plot {what}")
        assert code == 0
        picture = matplotlib.image.imread(out.strip())
        assert picture.std() > 0.01
    assert (tmp_path / "dna-3.png").exists()
    assert run("plot image.zarr 0 --out a.svg")[1] == "a.svg\n"
    assert run("plot image.zarr 5")[2] == "jaxlift: there is no example 5: the store has 3, from 0.\n"
    assert "no picture for scores of shape (2, 3, 4, 5)" in run("plot video.zarr 0")[2]
    assert "positions 30:50 are not within" in run("plot dna.zarr 0 --positions 30:50")[2]
    assert "need scores of shape (L, 4)" in run("plot table.zarr 0 --letters ACGT")[2]


def test_logo_is_as_high_as_the_scores(tmp_path):
    from matplotlib.figure import Figure

    from jaxlift.scoring._plot import _logo

    axes = Figure().add_subplot()
    _logo(axes, np.array([[1.0, 0, -2, 0.5], [0, 0, 0, 3]]), 10, "ACGT")
    extents = [patch.get_path().get_extents() for patch in axes.patches]
    heights = sorted((round(box.y0, 6), round(box.y1, 6)) for box in extents if box.height)
    assert heights == [(-2, 0), (0, 0.5), (0, 3), (0.5, 1.5)]


def test_a_model_that_is_explained_already(run):
    """It takes any arguments, as a factory without any may, but isn't one."""
    assert run("score scored:explained_already x.npy --out s --quiet")[0] == 0
    assert run("info s --json")[1].count("RevealCancel") == 1


@pytest.mark.parametrize("arguments", ["", "score", "info", "plot"])
def test_help(run, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run(f"{arguments} --help")
    assert ended.value.code == 0
    assert "usage: jaxlift" in capsys.readouterr().out


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
        progress = _progress.Progress("auto", 1000, 200)
        progress.update(50, 1e-6)  # too early for a line
        progress.update(70, 2e-6)
        progress.update(80, 3e-6)
        first, second = capsys.readouterr().err.splitlines()
        assert first == "jaxlift: 320 of 1000 (32.0%) examples, 10/s, 0:01:08 left, delta 2.0e-06"
        assert second.startswith("jaxlift: 400 of 1000 (40.0%) examples, 6.667/s, 0:01:30 left")

    def test_bar_and_quiet(self, capsys):
        bar = _progress.Progress("bar", 10, 0)
        bar.update(5, 1e-6)
        bar.say("example 3: bad")
        bar.close()
        err = capsys.readouterr().err
        assert "5/10" in err
        assert "example 3: bad" in err
        quiet = _progress.Progress("none", 10, 0)
        quiet.update(5, 1e-6)
        quiet.say("example 3: bad")
        assert capsys.readouterr().err == ""


def test_stopped_by_a_signal(tmp_path):
    """As schedulers do it. What was computed is kept."""
    np.save(tmp_path / "x.npy", scored.sequences(200000))
    arguments = ["score", "scored:model", "x.npy", "--target", "1", "--batch-size", "4", "--quiet"]
    process = started(*arguments, folder=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("scores.zarr/status/c/*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    status = zarr.open(tmp_path / "scores.zarr")["status"][:]
    assert 0 < status.sum() < 200000


def test_the_installed_command():
    """What the package's entry point calls is there."""
    code = "import tomllib, importlib; s = tomllib.load(open('pyproject.toml', 'rb'))['project']['scripts']['jaxlift'];"
    code += "m, f = s.split(':'); assert callable(getattr(importlib.import_module(m), f))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=scored.ROOT)
