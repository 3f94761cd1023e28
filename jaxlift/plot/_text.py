"""Words in the colours of their scores, in terminals, notebooks and figures."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxlift.plot._shared import checked_limit, finite, inches, new_axes
from jaxlift.scoring._extra import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pieces = Literal["auto", "wordpiece", "sentencepiece", "bpe", "words"]
MARKS = {"bpe": "\u0120", "sentencepiece": "\u2581", "wordpiece": "##"}  # Ġ, ▁: a word begins here; ##: it goes on
SPECIAL = re.compile(r"\[[A-Z]+\d*\]|<(?!0x[0-9A-F]{2}>)[^<>\s]+>")  # [CLS], <s>, <|endoftext|>
# ColorBrewer's RdBu, which matplotlib's map has too, from white outwards.
BLUES = np.array([(247, 247, 247), (209, 229, 240), (146, 197, 222), (67, 147, 195), (33, 102, 172), (5, 48, 97)])
REDS = np.array([(247, 247, 247), (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43), (103, 0, 31)])


@dataclass(frozen=True, eq=False)
class Text:
    """Words with scores. `print` shows them in colours in a terminal, a notebook by itself, and `draw` in a figure.

    Attributes:
        words: as they are read.
        scores: one for each word, `(W,)`.
        limit: the magnitude at which colours end.
    """

    words: tuple[str, ...]
    scores: np.ndarray
    limit: float

    def __str__(self) -> str:
        return self.ansi()

    def ansi(self) -> str:
        """The words on coloured ground by the codes that terminals with 24-bit colours know."""

        def code(kind: int, colour: str) -> str:
            red, green, blue = bytes.fromhex(colour[1:])
            return f"\x1b[{kind};2;{red};{green};{blue}m"

        return " ".join(
            code(48, ground) + code(38, ink) + word + "\x1b[0m" for word, _, ground, ink in self._coloured()
        )

    def __rich__(self) -> Any:
        """What rich prints, in the colours that the terminal has."""
        found = extra("rich.text").Text()
        for number, (word, _, ground, ink) in enumerate(self._coloured()):
            found.append(" " if number else "").append(word, style=f"{ink} on {ground}")
        return found

    def html(self) -> str:
        """The words as HTML, with scores that a pointer brings up, and the scale below. It needs no style sheet."""
        words = " ".join(
            f'<span title="{score:+.3g}" style="background-color: {ground}; color: {ink}; padding: 0 0.2em; '
            f'border-radius: 0.2em">{html.escape(word)}</span>'
            for word, score, ground, ink in self._coloured()
        )
        ends = ", ".join(_colour(share) for share in np.linspace(-1, 1, 11))
        scale = (
            f'<div style="font-size: 0.8em">{-self.limit:.3g} <span style="display: inline-block; width: 8em; height: '
            f'0.7em; background: linear-gradient(to right, {ends})"></span> {self.limit:.3g}</div>'
        )
        return f'<div style="line-height: 1.8">{words}{scale}</div>'

    def _repr_html_(self) -> str:
        return self.html()

    def draw(self, *, ax: Axes | None = None, size: float = 10) -> Axes:
        """Draw the words in boxes, in as many lines as the axes' width asks for.

        >>> axes = text(["not", "awe", "##some"], [-1.0, 0.5, 0.25]).draw()
        >>> [each.get_text() for each in axes.texts]
        ['not', 'awesome']

        Args:
            ax: where to draw, from the upper left corner; a new figure's, if left out.
            size: of the letters, in points.

        Returns:
            The axes, with a text for each word.
        """
        axes = new_axes(ax, (8, 1))
        axes.set_axis_off()
        textpath = extra("matplotlib.textpath")
        width, left, line = inches(axes) * 72, 0.0, 0
        for word, _, ground, ink in self._coloured():
            # Measured as text is drawn: a path's own extents leave out the room on both sides of letters.
            length, *_ = textpath.text_to_path.get_text_width_height_descent(
                word, extra("matplotlib.font_manager").FontProperties(size=size), False
            )
            if left and left + length > width:
                left, line = 0.0, line + 1
            axes.annotate(
                word, (0, 1), (left + 0.4 * size, -(1.1 + 1.9 * line) * size), xycoords="axes fraction",
                textcoords="offset points", fontsize=size, color=ink, va="center", parse_math=False,
                bbox={"boxstyle": "round,pad=0.25", "facecolor": ground, "edgecolor": "0.75", "linewidth": 0.5},
            )  # fmt: skip
            left += length + 0.9 * size
        if ax is None:
            axes.figure.set_size_inches(8, (2.2 + 1.9 * line) * size / 72 + 0.1)  # pyright: ignore[reportAttributeAccessIssue]
        return axes

    def _coloured(self) -> list[tuple[str, float, str, str]]:
        """Each word, its score, and the colours of the ground and of the letters."""
        shares = (self.scores / self.limit).clip(-1, 1)
        return [
            (word, float(score), _colour(share), "#ffffff" if abs(share) > 0.6 else "#000000")
            for word, score, share in zip(self.words, self.scores, shares, strict=True)
        ]


def text(tokens: Sequence[str], scores: ArrayLike, *, pieces: Pieces = "auto", limit: float | None = None) -> Text:
    """Colour words by their scores, red where they are positive and blue where they are negative.

    Pieces of words are joined, and their scores summed, so that the sum over the text stays what it is:

    >>> found = text(["the", "film", "is", "awe", "##some", "."], [0.0, 0.1, 0.0, 0.5, 0.25, 0.0])
    >>> found.words, found.scores.tolist()
    (('the', 'film', 'is', 'awesome', '.'), [0.0, 0.1, 0.0, 0.75, 0.0])

    Args:
        tokens: the tokenizer's strings.
        scores: `(T,)`, one for each token; or `(T, D)`, those of its embedding, which are summed.
        pieces: how the tokenizer marks pieces of words. WordPiece (BERT's) has "##" before those that go on with a
            word. SentencePiece (T5's, Llama's) has "▁", and byte-level BPE (GPT-2's) "Ġ", before those that begin one.
            ``"words"`` joins nothing. ``"auto"`` goes by the marks that are there; a text that has none is of words.
            Tokens such as ``[CLS]`` and ``</s>`` stay alone.
        limit: the magnitude at which colours end; the largest of the words' scores, if left out.

    Returns:
        A `Text`, to be printed (by rich too), displayed in a notebook, written as HTML or drawn.

    Raises:
        ValueError: if there are no tokens or not as many as scores, the scores aren't finite numbers of such a shape,
            or there is no such kind of pieces or limit.
    """
    values = finite("scores", scores)
    values = values.sum(1) if values.ndim == 2 else values
    tokens = [tokens] if isinstance(tokens, str) else [*tokens]
    if values.ndim != 1 or len(values) != len(tokens) or not tokens:
        raise ValueError(
            f"expected a score for each token, (T,) or (T, D) with T >= 1: got scores of shape {np.shape(scores)} and "
            f"{len(tokens)} tokens. A text is split first, as its tokens were."
        )
    if not all(isinstance(token, str) for token in tokens):
        raise ValueError("tokens must be strings: make them of their numbers by the tokenizer first.")
    if pieces == "auto":
        found = (kind for kind, mark in MARKS.items() if any(token.startswith(mark) for token in tokens))
        pieces = next(found, "words")  # pyright: ignore[reportAssignmentType]
    if pieces not in (*MARKS, "words"):
        raise ValueError(f"pieces={pieces!r}: expected 'auto', {', '.join(map(repr, MARKS))} or 'words'.")
    words, firsts = _joined(tokens, pieces)
    # Line breaks and codes of terminals are shown, not followed.
    words = [
        "".join(each if each.isprintable() else "\u21b5" if each == "\n" else "\u00b7" for each in w) for w in words
    ]
    sums = np.add.reduceat(values, firsts)
    limit = float(np.abs(sums).max()) or 1.0 if limit is None else limit
    return Text(tuple(words), sums, checked_limit(limit))


def _joined(tokens: list[str], pieces: Pieces) -> tuple[list[str], list[int]]:
    """Words, and the number of each one's first token."""
    words: list[str] = []
    firsts: list[int] = []
    after_special = True
    for number, token in enumerate(tokens):
        special = SPECIAL.fullmatch(token) is not None
        marked = pieces != "words" and token.startswith(MARKS[pieces]) and token != "##"
        goes_on = pieces != "words" and marked == (pieces == "wordpiece")
        if goes_on and not special and not after_special:
            words[-1] += token.removeprefix("##") if pieces == "wordpiece" else token
        else:
            words.append(token)
            firsts.append(number)
        after_special = special
    read = {"bpe": _of_bytes, "sentencepiece": _of_sentencepiece}.get(pieces, str)
    return [word if SPECIAL.fullmatch(word) else read(word) for word in words], firsts


def _of_sentencepiece(word: str) -> str:
    """With spaces for the marks, and letters for bytes that the vocabulary had no piece for, such as <0xC3><0xA9>."""

    def decoded(found: re.Match[str]) -> str:
        return bytes.fromhex(re.sub("<0x|>", "", found[0])).decode(errors="replace")

    return re.sub("(?:<0x[0-9A-F]{2}>)+", decoded, word).replace(MARKS["sentencepiece"], " ").strip() or " "


def _of_bytes(word: str) -> str:
    """What a byte-level tokenizer means.

    It writes each byte as one letter: those that are visible in Latin-1 as themselves, and the others, in order, by
    letters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    meant = {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
    if not set(word) <= meant.keys():
        return word
    return bytes(meant[letter] for letter in word).decode(errors="replace").strip(" ") or " "


def _colour(share: float) -> str:
    """The map's colour at a score's share of the limit, from -1 to 1."""
    colours = (BLUES if share < 0 else REDS).T
    return "#" + bytes(round(float(np.interp(abs(share), np.linspace(0, 1, 6), part))) for part in colours).hex()
