"""Variants: both alleles of each in the same window of a genome, each explained against the other."""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlift._arguments import check_count
from jaxlift.genomics._windows import Genome
from jaxlift.scoring._examples import DamagedError, Encoding, Examples, MalformedError, Status, reading
from jaxlift.scoring._extra import extra
from jaxlift.scoring._files import appearing, beside, check_not_read
from jaxlift.scoring._letters import BASES, Ambiguous, Unknown
from jaxlift.scoring._places import is_url, local, place, resolved
from jaxlift.scoring._score import explained, score
from jaxlift.scoring._store import Store
from jaxlift.scoring._summary import Summary

ALT, REF = 0, 1  # what the two rows of a variant explain
COLUMNS = ("chr", "pos", "allele1", "allele2", "variant_id")  # as variant-scorer names them
NUMBERS = ("allele1_output", "allele2_output", "effect", "delta", "delta_reversed")
OF_COUNTS = ("allele1_pred_counts", "allele2_pred_counts", "logfc", "abs_logfc")  # as variant-scorer names them


@dataclass(frozen=True)
class VariantSummary:
    """What `variants` did.

    Attributes:
        scores: of the store, which has two examples for each variant that is kept.
        kept: how many variants that are.
        refused: how many are not, for each reason.
        tsv: the table, if one was asked for.
    """

    scores: Summary
    kept: int
    refused: Mapping[str, int]
    tsv: Path | None

    def __str__(self) -> str:
        table = [] if self.tsv is None else [f"table in {self.tsv}"]
        return "\n".join([f"{self.kept} variants", str(self.scores), *table])


def variants(
    attr: Callable[..., Any],
    genome: str | Path,
    vcf: str | Path,
    *,
    out: str | Path,
    width: int,
    tsv: str | Path | None = None,
    log_counts: bool | Collection[str] = False,
    unknown: Unknown = "zeros",
    ambiguous: Ambiguous = "unknown",
    **run: Any,
) -> VariantSummary:
    """Explain the effects of variants base by base: each allele by DeepLIFT with the other one as its reference.

    >>> import jax.numpy as jnp, jaxlift, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "genome.fa").write_text(">chr1\\nACGTACGTAC\\n")
    >>> _ = (folder / "variants.tsv").write_text("chr1\\t5\\tA\\tC\\trs1\\nchr1\\t6\\tA\\tT\\trs2\\n")
    >>> attr = jaxlift.attribute(lambda x: jnp.tanh(x[:, :, 1].sum(1)))       # of the number of Cs
    >>> files = {"genome": folder / "genome.fa", "vcf": folder / "variants.tsv"}
    >>> found = jaxlift.genomics.variants(
    ...     attr, **files, width=4, out=folder / "v.zarr", tsv=folder / "v.tsv", progress="none"
    ... )
    >>> found.kept, found.refused
    (1, {'another reference allele': 1})
    >>> print((folder / "v.tsv").read_text().replace("\\t", " "), end="")
    chr pos allele1 allele2 variant_id allele1_output allele2_output effect delta delta_reversed status
    chr1 5 A C rs1 0.761594176 0.964027584 0.202433407 0 0 scored

    A window has `width` positions, of which ``width // 2`` lie before the variant. Both alleles have the same bases
    there; then comes the allele, and then what follows it in the genome, until the window is full. So an insertion
    pushes bases out at the end, a deletion draws some in, and behind either the alleles differ as far as shifted
    sequences do. The contributions sum to the effect, the output for the alternative less that for the reference.

    The store has two examples for each variant: 2i is the alternative explained against the reference allele, 2i + 1
    the reference allele against the alternative. Its columns say which is which (``explained``, ``"alt"`` or
    ``"ref"``), beside ``variant``, ``position`` (from 1), ``ref``, ``alt``, and the window's place. That is the part of
    the genome which is in the window: for the alternative of an insertion or deletion fewer or more than `width` bases.

    What can't be scored is refused, with the reason: symbolic alleles, breakends and ``*``; alleles with other letters
    than ACGT, or too long for the part of the window from its middle on; a reference allele that is not what the genome
    has there; a window that leaves its contig; a contig that the genome lacks. The list is in ``OUT.refused.tsv``, and
    the run says how many they are. Several alternatives of a record are a variant each.

    Args:
        attr: what `jaxlift.attribute` returns, as for `jaxlift.score`. Its rule compares with a reference.
        genome: the path of a FASTA file, which is indexed if it isn't yet.
        vcf: a VCF file, plain or bgzipped, or a BCF file; or a table, plain or gzipped, as variant-scorer takes it:
            ``.tsv`` or ``.txt`` with columns ``chr``, ``pos`` (from 1), ``allele1`` (the genome's), ``allele2`` and
            ``variant_id``, or ``.bed`` with ``chr``, ``start``, ``end``, ``allele1``, ``allele2`` and ``variant_id``.
            There ``-`` is the empty allele. A variant without an id is called ``chr:pos:allele1:allele2``.
        out: the store's path.
        width: how many positions the model takes.
        tsv: where to write the table of `variants_table`, when all is scored.
        log_counts: whether the target is a natural logarithm of counts, or which of several targets are: the table has
            variant-scorer's columns of counts then.
        unknown: the genome's N as ``"zeros"``, or as ``"quarters"`` of each base.
        ambiguous: the genome's letters for one of several bases as ``"unknown"``, as equal ``"shares"`` of those, or
            ``"refuse"``: the examples are malformed then.
        **run: how it runs: `batch_size`, `memory`, `devices`, `overwrite`, `progress` and others of `jaxlift.score`.
            Like that, it goes on where it was stopped.

    Returns:
        A `VariantSummary`.

    Raises:
        ValueError: if no variant can be scored, or `vcf` is no file of variants; and as `jaxlift.score` does.
        OSError: if a file is damaged.
        ModuleNotFoundError: if pysam or pyfaidx is not installed: ``pip install 'jaxlift[genomics]'``.
    """
    explainer = explained(attr)
    if not explainer.method.needs_reference:
        raise ValueError("variants compare one allele with the other, and this rule or method compares with nothing.")
    if explainer.options.pairing == "shared":
        raise ValueError("each allele is compared with the other one alone: leave out pairing='shared'.")
    for written in (_list_of_refused(resolved(place(out))), *([] if tsv is None else [place(tsv)])):
        check_not_read(written, [vcf, genome])
        if written.is_dir():
            raise ValueError(f"{written} is a folder: expected the name of a file to write.")
    with contextlib.closing(Genome(genome)) as opened:
        alleles = Alleles(opened, vcf, width, Encoding(unknown, ambiguous, explainer.options.last_channel_axis))
        scores = score(explainer.with_options(pairing="paired"), alleles, reference=alleles.others(), out=out, **run)
    table = place(tsv) if tsv is not None and scores.is_finished else None
    if table is not None:
        variants_table(out, table, log_counts=log_counts)
    return VariantSummary(scores, len(alleles.names), alleles.reasons, table)


class Variant(NamedTuple):
    """An alternative allele. The position counts from 1."""

    contig: str
    position: int
    ref: str
    alt: str
    name: str

    def row(self) -> tuple[str, str, str, str, str]:
        """As a table has it."""
        return self.contig, str(self.position), self.ref or "-", self.alt or "-", self.name


class Alleles(Examples):
    """The alleles of variants in their windows, one-hot, two for each variant: `ALT` and `REF`, or the other way round.

    Of the variants it holds the columns alone. What the genome has is read where it is needed.

    Attributes:
        refused: the variants that are not among them, and why in general and in particular.
    """

    letters = BASES

    def __init__(self, genome: Genome, path: str | Path, width: int, encoding: Encoding) -> None:
        check_count("width", width)
        self.genome, self.width, self.encoding, self.source = genome, width, encoding, f"{genome.path} with {path}"
        self.shape, self.dtype = encoding.shape(width), np.dtype(np.float32)
        self.reads = [genome.path, path]
        self.swapped = False
        # Examples and references are the same rows, which are read one after the other.
        self.pairs = functools.lru_cache(1)(self._encoded_pairs)
        self.contigs: list[str] = []
        self.positions = array("q")
        self.refs: list[str] = []
        self.alts: list[str] = []
        self.names: list[str] = []
        self.refused: list[tuple[Variant, str, str]] = []
        for variant in read_variants(local(path, "its library reads files alone")):
            if why := self._why_not(variant):
                self.refused.append((variant, *why))
                continue
            self.positions.append(variant.position)
            # Contigs and most alleles are few: as the same objects they take 8 bytes each.
            for column, text in zip((self.contigs, self.refs, self.alts), (variant[0], *variant[2:4]), strict=True):
                column.append(sys.intern(text))
            self.names.append(variant.name)
        self.count = 2 * len(self.names)
        if not self.count:
            if not self.refused:
                raise MalformedError(f"{path}: there are no variants.")
            first, reason, detail = self.refused[0]
            raise ValueError(
                f"{path}: no variant can be scored, {_told(self.reasons)}. The first is "
                f"{':'.join(first.row()[:4])}, {reason}: {detail}."
            )

    @property
    def reasons(self) -> dict[str, int]:
        """How many variants are refused, for each reason."""
        return dict(Counter(reason for _, reason, _ in self.refused))

    @property
    def hint(self) -> str:
        return f"Windows have {self.width} positions: give the width that the model takes."

    def others(self) -> Alleles:
        """For each allele the other one of its variant."""
        others = copy.copy(self)
        others.swapped, others.source = not self.swapped, "the other allele"
        return others

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The variants, the windows' places, and which allele is explained."""
        text = np.dtypes.StringDType()
        ref, alt = (np.array([allele or "-" for allele in alleles], text) for alleles in (self.refs, self.alts))
        position, name = np.array(self.positions, np.int64), np.array(self.names, text)
        start = position - 1 - self.width // 2
        more = [len(ref) - len(alt) for ref, alt in zip(self.refs, self.alts, strict=True)]
        each = {"contig": np.array(self.contigs, text), "start": start, "summit": position - 1, "variant": name}
        each |= {"position": position, "ref": ref, "alt": alt}
        columns = {key: np.repeat(values, 2) for key, values in each.items()}
        columns["explained"] = np.tile(np.array(["alt", "ref"], text), len(name))
        columns["name"] = columns["variant"] + np.array("_", text) + columns["explained"]
        columns["end"] = columns["start"] + self.width
        columns["end"][ALT::2] += np.array(more, np.int64)
        columns["strand"] = np.full(len(columns["name"]), "+", text)
        return columns

    def row(self, number: int) -> np.ndarray:
        return self.rows(number, number + 1)[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        first = start // 2
        pairs = self.pairs(first, -(-stop // 2))
        pairs = pairs[:, ::-1] if self.swapped else pairs
        return pairs.reshape(-1, *self.shape)[start - 2 * first : stop - 2 * first]

    def _encoded_pairs(self, first: int, last: int) -> np.ndarray:
        """Some variants' windows, `(n, 2, *shape)`: those with `ALT`, and those with `REF`."""
        letters = np.empty((last - first, 2, self.width), np.uint8)
        before = self.width // 2
        for i, row in enumerate(letters, first):
            ref, alt = self.refs[i], self.alts[i]
            start = self.positions[i] - 1 - before
            found = self.genome.letters(self.contigs[i], start, start + self.width + max(0, len(ref) - len(alt)))
            changed = found[:before], np.frombuffer(alt.encode(), np.uint8), found[before + len(ref) :]
            row[ALT], row[REF] = np.concatenate(changed)[: self.width], found[: self.width]
        pairs = self.encoding(letters)
        pairs.flags.writeable = False  # for they are given out twice
        return pairs

    def accompany(self, store: Path) -> list[str]:
        """Write the list of the variants that are refused beside the store, if there are any, and say how many."""
        path = _list_of_refused(store)
        if not self.refused:
            path.unlink(missing_ok=True)  # of an earlier run, of other variants
            return []
        with appearing(path) as draft, draft.open("w") as file:
            print(*COLUMNS, "reason", sep="\t", file=file)
            for variant, reason, detail in self.refused:
                print(*variant.row(), f"{reason}: {detail}", sep="\t", file=file)
        return [f"{_told(self.reasons)}, listed in {path}"]

    def _why_not(self, variant: Variant) -> tuple[str, str] | None:
        """Why a variant can't be scored, in general and in particular."""
        contig, position, ref, alt, _ = variant
        for allele in (ref, alt):
            if set(allele) - {*BASES}:
                return _kind_of(allele), f"{allele!r} is not of the letters {BASES}"
        if ref == alt:
            return "no alternative allele", f"both alleles are {ref or '-'}"
        if contig not in self.genome.lengths:
            like = contig.removeprefix("chr") if contig.startswith("chr") else f"chr{contig}"
            named = f", but {like!r}: rename the variants' contigs, as `bcftools annotate --rename-chrs` does"
            return "no such contig", f"the genome has no {contig!r}{named if like in self.genome.lengths else ''}"
        before = self.width // 2
        longest = max(len(ref), len(alt))
        if longest > self.width - before:
            return "allele too long", f"it has {longest} letters, and a window {self.width - before} from its middle on"
        start = position - 1 - before
        end = start + self.width + max(0, len(ref) - len(alt))
        length = self.genome.lengths[contig]
        if start < 0 or end > length:
            return "window leaves its contig", f"it has positions {start + 1} to {end}, and the contig 1 to {length}"
        found = self.genome.letters(contig, position - 1, position - 1 + max(len(ref), len(alt))).tobytes().decode()
        if not found.startswith(ref):
            swapped = ", which is the alternative: are the alleles swapped?" if alt and found.startswith(alt) else ""
            return (
                "another reference allele",
                f"expected {ref} at {contig}:{position}, but the genome has {found[: len(ref)]}{swapped}",
            )
        return None


def _list_of_refused(store: Path) -> Path:
    """Where the list of the variants that are not in a store is."""
    return beside(store, ".refused.tsv")


def _kind_of(allele: str) -> str:
    """What an allele is that isn't letters."""
    if allele == ".":
        return "no alternative allele"
    if "[" in allele or "]" in allele:
        return "breakend"
    if allele.startswith("<"):
        return "symbolic allele"
    if allele == "*":
        return "allele deleted by another variant"
    return "unknown letters in an allele"


def _told(reasons: Mapping[str, int]) -> str:
    """How many variants are refused, and why."""
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{sum(reasons.values())} refused ({counts})"


def read_variants(path: Path) -> Iterator[Variant]:
    """The variants of a file, one after another, and each alternative of a record for itself.

    Raises:
        ValueError: if the name or the content is no such file's.
        OSError: if it can't be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    match [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"][-1:]:
        case [".vcf" | ".bcf"]:
            return _of_vcf(path)
        case [".tsv" | ".txt"]:
            return _of_table(path, is_bed=False)
        case [".bed"]:
            return _of_table(path, is_bed=True)
    raise ValueError(f"{path}: expected variants as .vcf, .vcf.gz, .bcf, .tsv, .txt or .bed (or .gz of these three).")


def _variant(contig: str, position: int, ref: str, alt: str, name: str | None) -> Variant:
    ref, alt = (allele.upper() if allele.isalpha() else allele for allele in (ref, alt))
    named = name if name not in (None, "", ".") else f"{contig}:{position}:{ref or '-'}:{alt or '-'}"
    return Variant(contig, position, ref, alt, named)


def _of_vcf(path: Path) -> Iterator[Variant]:
    pysam = extra("pysam")
    # Its library would print errors, which are raised too, and note contigs that the header doesn't name.
    said = pysam.set_verbosity(0)
    try:
        kind = "VCF or BCF file with its header (compress it with bgzip, not with gzip)"
        with reading(path, kind), pysam.VariantFile(str(path)) as file:
            records, last = iter(file), "the header"
            while True:
                try:
                    record = next(records)
                except StopIteration:
                    return
                except (OSError, ValueError) as error:
                    raise DamagedError(
                        f"{path}: what follows {last} is no record, or is cut short ({error})."
                    ) from error
                last = f"{record.contig}:{record.pos}"
                for alt in record.alts or (".",):
                    yield _variant(record.contig, record.pos, record.ref or ".", alt, record.id)
    finally:
        pysam.set_verbosity(said)


def _of_table(path: Path, is_bed: bool) -> Iterator[Variant]:
    """The lines of a table, whose first may be a header: that of ``pos``, which is no number."""
    names = ("contig", "start", "end", *COLUMNS[2:]) if is_bed else COLUMNS
    with reading(path, "table of variants"), (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\r\n").split("\t")
            if not line.strip() or line.startswith("#") or (number == 1 and cells[1:2] in (["pos"], ["start"])):
                continue
            if len(cells) < len(names) or not cells[1].isdecimal():
                raise MalformedError(
                    f"{path}, line {number}: expected {', '.join(names)}, separated by tabs, got {line.strip()[:80]!r}."
                )
            ref, alt, name = cells[len(names) - 3 : len(names)]
            ref, alt = ("" if allele == "-" else allele for allele in (ref, alt))
            yield _variant(cells[0], int(cells[1]) + is_bed, ref, alt, name)


def variants_table(store: Store | str | Path, tsv: str | Path, *, log_counts: bool | Collection[str] = False) -> None:
    """Write what a store of `variants` has of each as a table of tab-separated columns, which appears when it is whole.

    ``chr``, ``pos`` (from 1), ``allele1`` (the genome's), ``allele2`` and ``variant_id`` are as in variant-scorer's
    tables. Then come, of the target that is explained:

    - ``allele1_output``, ``allele2_output``: what it is for each allele; ``effect``, the latter less the former;
    - ``delta``, ``delta_reversed``: what the contributions to the alternative, and to the reference allele, lack of
      their sums;
    - with `log_counts`: ``allele1_pred_counts`` and ``allele2_pred_counts``, the exponentials of the outputs;
      ``logfc``, the binary logarithm of their quotient, which is ``effect / log(2)``; and ``abs_logfc``. They mean what
      they mean there with ``--forward_only``: this is the forward strand, unless the model has both itself.

    and ``status``: ``scored``, or what is the matter. Of several targets all these columns have the name of each behind
    a dot. variant-scorer's other columns can't be had from one output (``jsd`` compares profiles, quantiles need the
    outputs for peaks, p-values those for shuffles).

    A target whose weights are held as they are at the input (such as a profile's) has those of the alternative here.

    Args:
        store: what `variants` made, finished or not, or its path.
        tsv: the table's path.
        log_counts: whether the target is a natural logarithm of counts; of several targets, the names of those that
            are.

    Raises:
        ValueError: if the store has no variants, or no such targets.
    """
    store = store if isinstance(store, Store) else Store(place(store), mode="r")
    columns = store.columns
    if "explained" not in columns:
        raise ValueError(f"{store.path} has no variants: expected a store that `jaxlift variants` made.")
    count = math.prod(store.arrays["delta"].shape[1:])
    targets = store.targets or (("",) if count == 1 else tuple(map(str, range(count))))
    logs = (targets if log_counts else ()) if isinstance(log_counts, bool) else tuple(log_counts)
    if unknown := [name for name in logs if name not in targets]:
        raise ValueError(
            f"{store.path} has no target {', '.join(unknown)}; it has {', '.join(targets) or 'one alone'}."
        )
    header = [*COLUMNS]
    for name in targets:
        suffix = f".{name}" if name else ""
        header += [f"{number}{suffix}" for number in (*NUMBERS, *(OF_COUNTS if name in logs else ()))]
    step = 2 * store.chunk
    tsv = place(tsv)
    if not is_url(tsv):
        tsv.parent.mkdir(parents=True, exist_ok=True)
    with appearing(tsv) as draft, draft.open("w") as file:
        print(*header, "status", sep="\t", file=file)
        for start in range(0, store.count, step):
            part = start, min(start + step, store.count)
            y, y_ref, delta = (
                store.rows(name, *part).reshape(-1, 2, count).astype(np.float64)
                for name in ("output", "output_reference", "delta")
            )
            values = []
            for k, name in enumerate(targets):
                ref, alt = y_ref[:, ALT, k], y[:, ALT, k]
                values += [ref, alt, alt - ref, delta[:, ALT, k], delta[:, REF, k]]
                if name in logs:
                    logfc = (alt - ref) / math.log(2)
                    with np.errstate(over="ignore"):
                        values += [np.exp(ref), np.exp(alt), logfc, np.abs(logfc)]
            status = store.rows("status", *part).reshape(-1, 2)
            status = np.where(status[:, ALT] == Status.SCORED, status[:, REF], status[:, ALT])
            texts = zip(
                *(columns[name][slice(*part)][::2] for name in ("contig", "position", "ref", "alt", "variant")),
                strict=True,
            )
            for text, row, state in zip(texts, np.stack(values, -1), status, strict=True):
                print(*text, *(f"{value:.9g}" for value in row), Status(state).name.lower(), sep="\t", file=file)
