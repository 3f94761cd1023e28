"""``jaxlift export``: a store's scores in the files of other tools."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jaxlift.commands._parser import FINISHED, STORE, opened_store, shown, where
from jaxlift.genomics._export import export


def add(commands: Any) -> None:
    """Add the command to those of ``jaxlift``."""
    parser = commands.add_parser(
        "export",
        help="files for TF-MoDISco, Fi-NeMo and genome browsers",
        description="Write a store's scores in the formats of other tools, several at once if you like. Examples "
        "without scores are left out; rows of H5, npz and narrowPeak files are in the store's order. Files that are "
        "there are replaced, each once it is complete.",
    )
    parser.add_argument("store", type=where, help=STORE)
    files = parser.add_argument_group("what is written")
    files.add_argument(
        "--h5", type=where, metavar="FILE", help="one-hot, hypothetical and projected scores, as ChromBPNet's"
    )
    files.add_argument(
        "--npz", type=where, metavar="PREFIX", help="PREFIX.ohe.npz and PREFIX.hyp.npz: one-hot and hypothetical scores"
    )
    files.add_argument("--bigwig", type=where, metavar="FILE", help="each base's contribution, for genome browsers")
    files.add_argument("--bedgraph", type=where, metavar="FILE", help="the same as text, gzipped if it ends with .gz")
    files.add_argument("--narrowpeak", type=where, metavar="FILE", help="the windows of the examples that have scores")
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument(
        "--chrom-sizes", type=where, metavar="FILE", help="names and lengths of the contigs, for --bigwig"
    )
    lengths.add_argument(
        "--genome", type=where, metavar="FASTA", dest="chrom_sizes", help="the genome, instead of --chrom-sizes"
    )
    parser.add_argument("--target", metavar="NAME", help="which of several outputs that were explained")
    parser.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        help="of the scores in H5 and npz files [float16 if that can hold them]",
    )
    parser.set_defaults(do=_export, parser=parser)


def _export(given: argparse.Namespace) -> int:
    names = ("h5", "npz", "bigwig", "bedgraph", "narrowpeak", "chrom_sizes", "target", "dtype")
    exported = export(opened_store(given.store), **{name: getattr(given, name) for name in names})
    for status, count in exported.left_out.items():
        print(f"jaxlift: {count} left out: {status.replace('_', ' ')}", file=sys.stderr)
    print(shown(exported))
    return FINISHED
