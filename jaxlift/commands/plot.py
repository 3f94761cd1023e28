"""``jaxlift plot``: a picture of one example's scores."""

from __future__ import annotations

import argparse
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlift import plot
from jaxlift.commands._parser import FINISHED, STORE, opened_store, shown, span, where
from jaxlift.scoring._examples import Status
from jaxlift.scoring._extra import extra
from jaxlift.scoring._files import appearing
from jaxlift.scoring._letters import BASES
from jaxlift.scoring._store import Store

TRACKS = 8  # in one picture
Place = tuple[str, int, int]  # a contig, or "" for positions of the example; from and to


def add(commands: Any) -> None:
    """Add the command to those of ``jaxlift``."""
    parser = commands.add_parser(
        "plot",
        help="a picture of one example's scores",
        description="Draw one example's scores: a sequence as letters, an image as pixels, a row of a table as bars "
        "in order of size (of more than 250 features an outline). "
        "Of a sequence the letters that are there are drawn; of a long one its outline, and the strongest places from "
        "near. Positions count from 0 and spans leave out their end, in the genome too, as in BED files. A sequence of "
        "the strand - is drawn as the model reads it, so the genome's positions fall from left to right.",
    )
    parser.add_argument("store", type=where, help=STORE)
    parser.add_argument("example", help="its number, from 0, or its name")
    parser.add_argument("--out", type=where, help="the picture's path [STORE-EXAMPLE.png]")
    parser.add_argument("--target", metavar="NAME", help="which of several outputs that were explained [all]")
    sequences = parser.add_argument_group("sequences")
    sequences.add_argument(
        "--positions", type=_place, metavar="FROM:TO", help="only these; or CONTIG:FROM-TO where the genome is known"
    )
    sequences.add_argument(
        "--span",
        type=_span,
        action="append",
        default=[],
        dest="spans",
        metavar="FROM:TO[=LABEL]",
        help="mark a motif or a variant, or CONTIG:FROM-TO[=LABEL]; give it as often as you like",
    )
    sequences.add_argument("--hypothetical", action="store_true", help="draw all letters of hypothetical scores")
    sequences.add_argument("--letters", help="what the channels stand for [ACGT for one-hot DNA]")
    parser.set_defaults(do=_plot, parser=parser)


def _plot(given: argparse.Namespace) -> int:
    store = opened_store(given.store)
    number = _number(store, given.example)
    status = Status(int(store.rows("status", number, number + 1)[0]))
    if status != Status.SCORED:
        raise ValueError(f"example {number} has no scores: {status.name.lower().replace('_', ' ')}.")
    letters = given.letters or (BASES if "sequence" in store.arrays else store.settings["examples"].get("letters"))
    if given.hypothetical and store.output != "hypothetical":
        raise ValueError(
            f"--hypothetical is for hypothetical scores, and {store.path} has {store.output}: score with --output "
            "hypothetical."
        )
    rows = _rows(store, number, given.target)
    name = str(store.columns["name"][number]) if "name" in store.columns else ""
    is_observed = letters is not None and "sequence" in store.arrays and not given.hypothetical
    drawn = "contributions" if is_observed and store.output == "hypothetical" else store.output
    title = shown(f"example {number}{f' ({name})' if name else ''}: {drawn}")
    if letters is not None:
        rows = {key: np.moveaxis(row, store.letters_axis, -1) if row.ndim == 2 else row for key, row in rows.items()}
        figure = _tracks(store, number, rows, letters, given, title)
    elif given.positions or given.spans or given.hypothetical:
        raise ValueError(
            "--positions, --span and --hypothetical are for sequences: say with --letters what the channels stand for, "
            "such as --letters ACGT."
        )
    else:
        figure = _pictures(rows, title)
    out = given.out or Path(f"{given.store.stem}-{number}.png")
    suffix, formats = out.suffix.removeprefix(".") or "png", figure.canvas.get_supported_filetypes()
    if suffix.lower() not in formats:
        raise ValueError(f"--out {out}: there are no pictures of the format {suffix}; there are {', '.join(formats)}.")
    with appearing(out) as draft:
        figure.savefig(draft, dpi=150, format=suffix)
    print(shown(out))
    return FINISHED


def _number(store: Store, text: str) -> int:
    """The number of the example that a number or a name means."""
    if text.isdecimal():
        if int(text) >= store.count:
            raise ValueError(f"there is no example {text}: the store has {store.count}, from 0.")
        return int(text)
    names = store.columns.get("name", np.empty(0, str))
    found = np.flatnonzero(names == text)
    if len(found) == 1:
        return int(found[0])
    if len(found):
        some = ", ".join(map(str, found[:8]))
        raise ValueError(f"{len(found)} examples have the name {text!r}: give the number of one, such as {some}.")
    like = difflib.get_close_matches(text, map(str, names[:10_000]), 3)
    more = f"did you mean {', '.join(like)}?" if like else f"give one's number, 0 to {store.count - 1}."
    raise ValueError(f"there is no example {text!r}: {more}")


def _rows(store: Store, number: int, target: str | None) -> dict[str, np.ndarray]:
    """An example's scores, of each output that is drawn."""
    scores = store.rows(store.output, number, number + 1)[0]
    if target in store.targets:
        return {str(target): scores[store.targets.index(str(target))]}
    some = ", ".join(store.targets[:TRACKS])
    if target is not None:
        raise ValueError(f"{store.path} has no target {target!r}; it has {some or 'none, but scores of one output'}.")
    if len(store.targets) > TRACKS:
        raise ValueError(f"{store.path} has {len(store.targets)} outputs: choose one with --target, such as {some}.")
    return dict(zip(store.targets, scores, strict=True)) if store.targets else {"": scores}


def _tracks(
    store: Store, number: int, rows: dict[str, np.ndarray], letters: str, given: argparse.Namespace, title: str
) -> Any:
    """A figure of letters."""
    for name, row in rows.items():
        if row.ndim != 2 or row.shape[1] != len(letters):
            raise ValueError(f"letters={letters!r} need scores of shape (L, {len(letters)}), got {row.shape}.")
        if "sequence" in store.arrays and not given.hypothetical:
            rows[name] = plot.observed(row, store.one_hot(number, number + 1)[0], output=store.output)
    length = len(next(iter(rows.values())))
    columns = store.columns
    site = Site(length)
    # Behind an insertion or a deletion, an allele's positions are not the genome's: it is drawn in its own.
    if {"contig", "start", "end"} <= columns.keys() and columns["end"][number] - columns["start"][number] == length:
        strand = str(columns["strand"][number]) if "strand" in columns else "."
        site = Site(length, str(columns["contig"][number]), int(columns["start"][number]), strand)
    start, stop = site.positions(given.positions) if given.positions else (0, length)
    return plot.tracks(
        {name: row[start:stop] for name, row in rows.items()},
        letters=letters,
        start=site.turned(start, stop)[0],
        strand=site.strand,
        contig=shown(site.contig),
        spans=[(*site.turned(*site.positions(place)), shown(label)) for place, label in given.spans],
        title=title,
    )


def _pictures(rows: dict[str, np.ndarray], title: str) -> Any:
    """A figure of pixels or bars, a picture for each output."""
    shape = next(iter(rows.values())).shape
    in_order = len(shape) == 1 and shape[0] > plot.LEGIBLE
    size = (plot.WIDTH, 2.5 * len(rows)) if in_order else (6, 4.5 * len(rows))
    figure = extra("matplotlib.figure").Figure(size, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for line, (name, row) in enumerate(rows.items(), 1):
        if not (row.ndim <= 2 or (row.ndim == 3 and row.shape[2] <= 4)):
            raise ValueError(
                f"there is no picture for scores of shape {row.shape}: expected (F,), (H, W), (H, W, C), (L, C)."
            )
        draw = plot.image if row.ndim > 1 else plot.signal if in_order else plot.bars
        draw(row, ax=figure.add_subplot(len(rows), 1, line)).set_ylabel(name)
    return figure


@dataclass
class Site:
    """Where a sequence is; without a contig, its own positions."""

    length: int
    contig: str = ""
    start: int = 0
    strand: str = "."

    def turned(self, start: int, stop: int) -> tuple[int, int]:
        """Positions of the example in the genome."""
        if self.strand == "-":
            start, stop = self.length - stop, self.length - start
        return self.start + start, self.start + stop

    def positions(self, place: Place) -> tuple[int, int]:
        """Those of the example that a place means."""
        contig, start, stop = place
        end = self.start + self.length
        if contig and not self.contig:
            raise ValueError(f"{contig}:{start}-{stop}: this store has no coordinates, give positions as FROM:TO.")
        if contig:
            inside = contig == self.contig and self.start <= start < stop <= end
            given, whole = f"{contig}:{start}-{stop}", f"{self.contig}:{self.start}-{end}"
            start, stop = (end - stop, end - start) if self.strand == "-" else (start - self.start, stop - self.start)
        else:
            inside = 0 <= start < stop <= self.length
            given, whole = f"{start}:{stop}", f"0:{self.length}"
        if not inside:
            raise ValueError(f"positions {given} are not within the example's {whole}.")
        return start, stop


def _place(text: str) -> Place:
    found = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text)
    if not found:
        return "", *span(text)
    return found[1], int(found[2].replace(",", "")), int(found[3].replace(",", ""))


def _span(text: str) -> tuple[Place, str]:
    place, _, label = text.partition("=")
    return _place(place), label
