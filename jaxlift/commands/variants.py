"""``jaxlift variants``: the effects of variants, explained base by base."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jaxlift.commands._parser import BAD_EXAMPLES, FINISHED, number, shown, where
from jaxlift.commands.score import (
    EXIT_CODES,
    add_explained,
    add_letters,
    add_model,
    add_out,
    add_run,
    attribution_of,
    begin,
    run_options,
)
from jaxlift.genomics._variants import VariantSummary, variants
from jaxlift.scoring._files import beside
from jaxlift.scoring._shards import telling_others


def add(commands: Any) -> None:
    """Add the command to those of ``jaxlift``."""
    parser = commands.add_parser(
        "variants",
        help="explain the effects of variants, base by base",
        description="Explain the effect of each variant, base by base: the alternative allele against the reference "
        "allele, and the other way round. Into a Zarr store, and a table of the effects. Stop or kill it when you "
        "like: the same command goes on where it stopped.",
        epilog=EXIT_CODES,
    )
    add_model(parser)
    parser.add_argument("genome", type=Path, help="a FASTA file")
    parser.add_argument(
        "--vcf",
        type=Path,
        required=True,
        metavar="FILE",
        help="the variants: .vcf, .vcf.gz (bgzip) or .bcf; or variant-scorer's .tsv (chr, pos, allele1, allele2, "
        "variant_id) or .bed",
    )
    parser.add_argument("--width", type=number(1), required=True, metavar="L", help="positions that the model takes")
    add_out(parser, "variants.zarr")
    parser.add_argument("--tsv", type=where, metavar="FILE", help="the table [OUT with .effects.tsv]")
    parser.add_argument(
        "--log-counts",
        action="store_true",
        help="the target is a natural logarithm of counts, so that the table has counts and log2 fold changes; "
        "--target counts says so itself",
    )
    add_letters(parser)
    add_explained(parser)
    add_run(parser)
    parser.set_defaults(do=_variants, parser=parser)


def _variants(given: argparse.Namespace) -> int:
    begin(given)
    with telling_others():
        summary = _explained(given)
    if not given.quiet:
        print(shown(summary))
    return BAD_EXAMPLES if summary.scores.bad else FINISHED


def _explained(given: argparse.Namespace) -> VariantSummary:
    return variants(
        attribution_of(given),
        given.genome,
        given.vcf,
        out=given.out,
        width=given.width,
        tsv=given.tsv or beside(given.out, ".effects.tsv"),
        log_counts=given.log_counts or _counts(given.target),
        unknown=given.unknown,
        ambiguous=given.ambiguous,
        **run_options(given),
    )


def _counts(target: str | None) -> bool | Collection[str]:
    """Whether a target by name is of log counts, or which of several are."""
    written = [each.strip() for each in (target or "").split(",")]
    kinds = [each.partition("@")[0] for each in written]
    if len(written) == 1:
        return kinds == ["counts"]
    names = kinds if len(set(kinds)) == len(kinds) else written
    return [name for name, kind in zip(names, kinds, strict=True) if kind == "counts"]
