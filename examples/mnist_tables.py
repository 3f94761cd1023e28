"""What the example mnist.py finds, as numbers and as tables."""

from typing import Any

import numpy as np
from compared import median

SHAPLEY = "Shapley sampling"
REVEALCANCEL = "DeepLIFT RevealCancel"
IN_PAPER = [
    "gradient x input",
    "guided backprop x input",
    "integrated gradients, 5 steps",
    "integrated gradients, 10 steps",
    "DeepLIFT Rescale",
    REVEALCANCEL,
]


def conversion(changes: dict[str, np.ndarray]) -> dict[str, Any]:
    """Of one pair of classes, each method's increases, and how much greater RevealCancel's are on the same images."""
    first = changes[REVEALCANCEL]
    known = {name: ~np.isnan(values) for name, values in changes.items()}
    return {
        name: {
            "increase": median(values[known[name]]),
            "RevealCancel's advantage": median((first - values)[known[name]]),
        }
        for name, values in changes.items()
    }


def pairs(changes: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """Of all pairs of classes, each method's increases, and how many pairs each wins by its median."""
    table = {
        f"{a} to {b}": {name: median(values[labels == a, b]) for name, values in changes.items()}
        for a in np.unique(labels)
        for b in range(10)
        if a != b
    }

    def wins(names: list[str]) -> dict[str, int]:
        winners = [max(names, key=lambda name: row[name]["median"]) for row in table.values()]
        return {name: winners.count(name) for name in names}

    return {"increase": table, "wins": wins(list(changes)), "wins among the paper's methods": wins(IN_PAPER)}


def beyond(scores: dict[str, np.ndarray], sampled: np.ndarray, error: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How far scores for images' own classes are from sampled Shapley values, relative to these; and their correlation.

    A scale that is too large makes for a distance, but doesn't change the correlation.
    """

    def own(scores: np.ndarray) -> np.ndarray:
        return scores[np.arange(len(labels)), labels].reshape(len(labels), -1)

    def norm(scores: np.ndarray) -> np.ndarray:
        return np.linalg.norm(scores, axis=1)

    exact = own(sampled)
    correlations = {
        name: np.array([*map(lambda a, b: np.corrcoef(a, b)[0, 1], own(x), exact)]) for name, x in scores.items()
    }
    return {
        "distance": {name: median(norm(own(x) - exact) / norm(exact)) for name, x in scores.items()},
        "correlation": {name: median(values) for name, values in correlations.items()},
        "standard error of the sampled values": median(norm(own(error)) / norm(exact)),
    }


def report(numbers: dict[str, Any]) -> None:
    """The tables, and whether the paper's ranking comes out."""

    def spoken(row: dict[str, float]) -> str:
        return f"{row['median']:7.2f} ({row['low']:6.2f} to {row['high']:6.2f})"

    for title, rows in numbers["conversions"].items():
        print(
            f"\n{title}: increase of the log-odds, median and 95% interval; RevealCancel's advantage on the same images"
        )
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["increase"]["median"]):
            increase, advantage = row["increase"], row["RevealCancel's advantage"]
            print(f"  {name:34}{spoken(increase)}   {spoken(advantage)}   {increase['images']} images")
    table, wins = numbers["pairs"]["increase"], numbers["pairs"]["wins"]
    print("\nall pairs, medians, the best with a star")
    for letter, name in zip("abcdefghi", wins, strict=True):
        among = numbers["pairs"]["wins among the paper's methods"].get(name)
        note = "" if among is None else f"; {among} among the paper's methods"
        print(f"  {letter}: {name}, first in {wins[name]} of {len(table)} pairs{note}")
    print(f"{'':8}" + "".join(f"{letter:>7}" for letter in "abcdefghi"))
    for title, row in table.items():
        best = max(each["median"] for each in row.values())
        print(f"{title:8}" + "".join(f"{x['median']:6.2f}{'*' if x['median'] == best else ' '}" for x in row.values()))

    found, seconds = numbers["beyond the paper"], numbers["seconds an image"]
    noise = found["standard error of the sampled values"]
    print(f"\nShapley values of {noise['images']} images: relative distance, correlation, and time for all classes")
    for name, row in found["distance"].items():
        print(
            f"  {name:34}{spoken(row)}   {spoken(found['correlation'][name])}  {1e3 * seconds[name]:8.1f} ms an image"
        )
    print(f"  {SHAPLEY:34}{spoken(noise)} by its standard error {1e3 * seconds[SHAPLEY]:17.1f} ms an image\n")
    for title, rows in numbers["conversions"].items():
        first = max(IN_PAPER, key=lambda name: rows[name]["increase"]["median"])
        verdict = "as in the paper" if first == REVEALCANCEL else "where the paper has DeepLIFT RevealCancel"
        print(f"{title}: of the paper's methods, {first} comes first, {verdict}")
