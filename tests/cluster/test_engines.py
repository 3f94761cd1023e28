"""GNU parallel and Snakemake, as docs/clusters.md has them: engines that know nothing of jaxlift, nor it of them."""

import shutil

import pytest
from test_scoring import compiled_once, same
from test_slurm import block, in_many_chunks, peaks, shell

__all__ = ["compiled_once", "peaks"]
pytestmark = pytest.mark.systems


def needs(program, how):
    return pytest.mark.skipif(not shutil.which(program), reason=f"needs {program}: {how}")


@needs("parallel", "apt-get install parallel")
def test_gnu_parallel(peaks, tmp_path):
    folder = peaks(tmp_path / "parallel")
    shell(in_many_chunks(block("parallel")), folder)
    same(folder / "scores.zarr", folder / "quick.zarr")
    shell("jaxlift verify scores.zarr", folder)


@needs("snakemake", "pip install snakemake, in an environment of its own, and its folder in PATH")
def test_snakemake(peaks, tmp_path):
    folder = peaks(tmp_path / "snakemake")
    (folder / "Snakefile").write_text(in_many_chunks(block("Snakefile")))
    shell(block("snakemake"), folder)
    same(folder / "scores.zarr", folder / "quick.zarr")
    assert (folder / "shards" / "all").exists()
