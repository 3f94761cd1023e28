"""Pictures of scores: what letters are drawn, as high as what, and where."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.image
import numpy as np
import pytest
import scored
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import jaxlift
from jaxlift import plot, references
from jaxlift.commands import plot as command
from jaxlift.commands._main import main
from jaxlift.genomics import Regions, Windows
from jaxlift.genomics.targets import named
from jaxlift.plot import _sequences
from jaxlift.scoring._store import Store

LETTERS = {to_rgba(plot.COLOURS[letter]): letter for letter in "ACGT"}
X = scored.sequences(6)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def glyphs(axes):
    """The letters of a logo: which, from which position to which, and from which height to which."""
    (logo,) = (artist for artist in axes.collections if isinstance(artist, PathCollection))
    boxes = [path.get_extents() for path in logo.get_paths()]
    colours = [LETTERS[tuple(colour)] for colour in logo.get_facecolors()]
    return [(letter, box.x0, box.x1, box.y0, box.y1) for letter, box in zip(colours, boxes, strict=True)]


def drawn(axes, length, start=0):
    """The scores `(L, 4)` that a logo shows: each letter's height, below the axis where it is negative."""
    scores = np.zeros((length, 4))
    for letter, left, right, low, high in glyphs(axes):
        row = round((left + right) / 2) - start
        scores[row, "ACGT".index(letter)] = high - low if low >= -1e-12 else low - high
    return scores


def shuffled(output):
    """Scores of a model against shuffles, in which most letters are other ones."""
    keys = jax.random.split(jax.random.key(0), len(X))
    shuffles = jax.vmap(lambda x, key: references.dinucleotide_shuffle(x, key, count=5))(jnp.asarray(X), keys)
    attr = jaxlift.attribute(scored.model, target=1, output=output, pairing="paired", full=True)
    found = attr(jnp.asarray(X), reference=shuffles)
    return np.asarray(found.scores), np.asarray(found.output - found.output_reference)


class TestObserved:
    def test_contributions_and_hypothetical_scores_agree(self):
        contributions, difference = shuffled("contributions")
        hypothetical, _ = shuffled("hypothetical")
        found = plot.observed(contributions, X)
        np.testing.assert_allclose(found, plot.observed(hypothetical, X, output="hypothetical"), atol=1e-6)
        np.testing.assert_allclose(found.sum((1, 2)), difference, atol=1e-5)
        assert not found[X == 0].any()

    def test_multipliers(self):
        multipliers = normal(*X.shape)
        np.testing.assert_array_equal(plot.observed(multipliers, X, output="multipliers"), multipliers * X)

    def test_positions_without_a_letter_have_no_score(self):
        one_hot = np.array([[0, 0, 0, 0], [0, 1, 0, 0]], np.int8)
        np.testing.assert_array_equal(plot.observed(np.ones((2, 4)), one_hot), [[0] * 4, [0, 4, 0, 0]])

    @pytest.mark.parametrize(
        ("scores", "one_hot", "options", "message"),
        [
            (np.ones((3, 4)), np.eye(4), {}, r"one shape \(\.\.\., L, C\), got \(3, 4\) and \(4, 4\)"),
            (np.ones(4), np.eye(4)[0], {}, r"one shape"),
            (np.ones((4, 4)), np.full((4, 4), 0.25), {}, "single 1"),
            (np.ones((4, 4)), np.ones((4, 4)), {}, "single 1"),
            (np.ones((4, 4)), np.eye(4), {"output": "gradients"}, "expected 'contributions', 'hypothetical'"),
        ],
    )
    def test_errors(self, scores, one_hot, options, message):
        with pytest.raises(ValueError, match=message):
            plot.observed(scores, one_hot, **options)


class TestLogo:
    def test_stacks(self):
        axes = plot.logo([[1.0, 0, -2, 0.5], [0, 0, 0, 3], [-1, -0.5, 0, 0]])
        found = sorted((letter, round((a + b) / 2), low, high) for letter, a, b, low, high in glyphs(axes))
        wanted = [("A", 0, 0.5, 1.5), ("A", 2, -1.5, -0.5), ("C", 2, -0.5, 0), ("G", 0, -2, 0), ("T", 0, 0, 0.5)]
        assert [letter for letter, *_ in found] == ["A", "A", "C", "G", "T", "T"]
        np.testing.assert_allclose([row[1:] for row in found[:5]], [row[1:] for row in wanted], atol=1e-6)
        assert all(0.9 < b - a <= 1 for _, a, b, *_ in glyphs(axes))

    def test_heights_are_scores(self):
        scores = normal(50, 4)
        limit = max(np.maximum(scores, 0).sum(1).max(), -np.minimum(scores, 0).sum(1).min())
        visible = np.where(np.abs(scores) >= 0.01 * limit, scores, 0)
        assert (visible == 0).any()
        np.testing.assert_allclose(drawn(plot.logo(scores), 50), visible, atol=1e-6)

    def test_negative_letters_are_upside_down(self):
        up, down = plot.logo([[1.0, 0, 0, 0], [-1, 0, 0, 0]]).collections[0].get_paths()
        np.testing.assert_allclose(down.vertices, up.vertices * (1, -1) + (1, 0), atol=1e-12)

    def test_ink_is_on_the_letters_that_are_there(self):
        """Of contributions against shuffles, half would be on letters that aren't."""
        contributions, _ = shuffled("contributions")
        for scores, one_hot in zip(contributions, X, strict=True):
            before, after = (np.abs(drawn(plot.logo(row), 40)) for row in (scores, plot.observed(scores, one_hot)))
            assert (before * one_hot).sum() < 0.8 * before.sum()
            assert (after * one_hot).sum() == after.sum() > 0

    def test_one_collection_of_thousands_of_letters(self):
        axes = plot.logo(normal(2114, 4))
        assert len(axes.collections) == 1
        assert len(axes.collections[0].get_paths()) > 8000
        assert not axes.patches

    def test_the_axis_has_the_genome_s_positions(self):
        axes = plot.logo(np.eye(4), contig="chr7", start=10**8)
        assert axes.get_xlim() == (10**8 - 0.5, 10**8 + 3.5)
        assert axes.get_xlabel() == "chr7, positions from 0"
        assert [round((a + b) / 2) for _, a, b, *_ in glyphs(axes)] == [10**8 + i for i in range(4)]
        axes.figure.draw_without_rendering()
        assert "100,000,002" in [label.get_text() for label in axes.get_xticklabels()]

    def test_strand_minus_is_drawn_as_the_model_reads_it(self):
        plus, minus = (plot.logo(np.eye(4), start=100, strand=strand, contig="chr1") for strand in "+-")
        assert minus.get_xlim() == (103.5, 99.5)
        assert minus.get_xlabel() == "chr1, positions from 0, strand -"
        assert [(letter, round((a + b) / 2)) for letter, a, b, *_ in glyphs(minus)] == [
            ("A", 103),
            ("C", 102),
            ("G", 101),
            ("T", 100),
        ]
        for one, other in zip(plus.collections[0].get_paths(), minus.collections[0].get_paths(), strict=True):
            on_screen = (axes.transData.transform(path.vertices) for axes, path in ((plus, one), (minus, other)))
            np.testing.assert_allclose(*on_screen, atol=1e-6)

    def test_spans(self):
        spans = [(102, 105, "motif"), (103, 104, "variant"), (108, 109, ""), (200, 210, "elsewhere")]
        for strand in "+-":
            axes = plot.logo(normal(10, 4), start=100, strand=strand, spans=spans)
            shaded = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
            assert shaded == [(101.5, 104.5), (102.5, 103.5), (107.5, 108.5)]
            assert [text.get_text() for text in axes.texts] == ["motif", "variant"]
            axes.figure.draw_without_rendering()
            motif, variant = (text.get_window_extent() for text in axes.texts)
            assert variant.y0 > motif.y1 > motif.y0 > axes.bbox.y1

    def test_labels_side_by_side_share_a_lane(self):
        axes = plot.logo(normal(60, 4), spans=[(0, 10, "one"), (30, 40, "two")])
        axes.figure.draw_without_rendering()
        one, two = (text.get_window_extent() for text in axes.texts)
        assert one.y0 == two.y0

    def test_axes_and_limits_and_colours_of_one_s_own(self):
        mine = Figure().add_subplot()
        axes = plot.logo([[0.5, 0.02]], ax=mine, letters="XI", colours={"X": "#123456"}, limits=(-4, 4))
        assert axes is mine
        (path,) = axes.collections[0].get_paths()  # the I is less high than 0.04, and has its room all the same
        assert (path.get_extents().y0, path.get_extents().y1) == pytest.approx((0.02, 0.52))
        assert tuple(axes.collections[0].get_facecolors()[0]) == to_rgba("#123456")
        assert axes.get_ylim()[0] < -4
        wide, narrow = (np.ptp(_sequences._glyph(letter)[0][:, 0]) for letter in "XI")
        assert narrow < 0.5 * wide

    def test_nothing_to_draw(self):
        axes = plot.logo(np.zeros((5, 4)))
        assert not axes.collections[0].get_paths()
        axes.figure.draw_without_rendering()

    @pytest.mark.parametrize(
        ("scores", "options", "message"),
        [
            (np.ones((5, 3)), {}, r"letters='ACGT' need scores of shape \(L, 4\), got \(5, 3\)"),
            (np.ones(5), {}, r"need scores of shape \(L, 4\), got \(5,\)"),
            (np.ones((0, 4)), {}, r"got \(0, 4\)"),
            ([[1, np.nan, 0, 0]], {}, r"scores must be finite: 1 of 4 are not, the first at \[0, 1\]"),
            (np.eye(4), {"strand": "minus"}, "strand='minus': expected"),
            (np.eye(4), {"spans": [(3, 3, "")]}, r"start < end, half-open, got \(3, 3, ''\)"),
            (np.eye(4), {"spans": [(3, 4)]}, r"got \(3, 4\)"),
            (np.eye(4), {"letters": "AC T"}, "' ' has no shape"),
        ],
    )
    def test_errors(self, scores, options, message):
        with pytest.raises(ValueError, match=message):
            plot.logo(scores, **options)


class TestTracks:
    def test_short_ones_are_letters_with_a_shared_scale(self):
        small, large = normal(2, 40, 4) * [[[1]], [[5]]]
        figure = plot.tracks({"small": small, "large": large}, title="both")
        first, second = figure.axes
        assert first.get_ylim() == second.get_ylim()
        assert (first.get_ylabel(), second.get_ylabel()) == ("small", "large")
        assert second.get_ylim()[1] >= np.maximum(large, 0).sum(1).max()
        shown = np.where(np.abs(large) >= 0.01 * max(np.abs(second.get_ylim())), large, 0)
        np.testing.assert_allclose(drawn(second, 40), shown, atol=0.02)

    @pytest.mark.parametrize("strand", ["+", "-"])
    def test_long_ones_are_an_outline_and_the_strongest_places(self, strand):
        scores = normal(2114, 4) * 0.01
        peaks = {300: 3.0, 1200: -2.0, 1900: 1.0}
        for at, height in peaks.items():
            scores[at : at + 7, 1] = height
        figure = plot.tracks({"": scores}, start=1000, strand=strand, windows=3, width=30, contig="chr1")
        outline, *windows = figure.axes
        assert len(windows) == 3
        for at, axes in zip(peaks, windows, strict=True):
            first = round(min(axes.get_xlim()) + 0.5) - 1000
            places = [first + i for i in range(30)] if strand == "+" else [2113 - first - i for i in range(30)]
            assert {*range(at, at + 7)} <= {*places}
            assert abs(np.mean(places) - (at + 3)) < 3  # in the middle
            assert axes.get_ylim() == outline.get_ylim()
            heights = {round(high - low, 6) for _, _, _, low, high in glyphs(axes)}
            assert abs(peaks[at]) in heights
        marked = [sorted((patch.get_x(), patch.get_x() + patch.get_width())) for patch in outline.patches]
        assert marked == [sorted(axes.get_xlim()) for axes in windows]
        assert [text.get_text() for text in outline.texts] == ["1", "2", "3"]
        assert [axes.texts[0].get_text() for axes in windows] == ["1", "2", "3"]
        assert outline.get_xlabel().startswith("chr1")

    def test_the_outline_keeps_peaks_of_long_sequences(self):
        scores = np.zeros((50_001, 4))
        scores[[7, 31_234]] = [0, 0, 5, 1], [-2, 0, -1, 0]
        vertices = plot.tracks({"": scores}).axes[0].collections[0].get_paths()[0].vertices
        assert len(vertices) < 20_000
        assert (vertices[:, 1].min(), vertices[:, 1].max()) == (-3, 6)
        assert abs(vertices[vertices[:, 1] == 6, 0].mean() - 7) < 26

    def test_windows_do_not_overlap(self):
        strength = np.random.default_rng(0).random(300)
        places = _sequences._strongest(strength, 5, 30)
        assert len(places) == 5
        assert np.diff(places).min() >= 30
        assert places[0] >= 0
        assert places[-1] + 30 <= 300
        assert _sequences._strongest(np.zeros(300), 4, 30) == [0]
        assert _sequences._strongest(strength, 4, 300) == [0]

    def test_spans_are_named_once(self):
        rows = {name: normal(300, 4, seed=seed) for seed, name in enumerate("ab")}
        figure = plot.tracks(rows, spans=[(0, 300, "all")], windows=2)
        assert len(figure.axes) == 6
        assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [
            ["1", "2", "all"], ["1", "all"], ["2", "all"], [], [], [],
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("scores", "options", "message"),
        [
            ({}, {}, r"one shape \(L, 4\) for all tracks, got \[\]"),
            ({"a": np.eye(4), "b": np.ones((5, 4))}, {}, r"got \[\(4, 4\), \(5, 4\)\]"),
            ({"a": np.ones((4, 3))}, {}, r"got \(4, 3\) as scores\['a'\]"),
            ({"a": np.eye(4)}, {"windows": 0}, "windows=0, width=30"),
        ],
    )
    def test_errors(self, scores, options, message):
        with pytest.raises(ValueError, match=message):
            plot.tracks(scores, **options)

    @pytest.mark.parametrize("length", [40, 300])
    def test_each_on_a_scale_of_its_own(self, length):
        rows = {"small": normal(length, 4), "large": 5 * normal(length, 4, seed=1)}
        for shared, said in ((True, "one scale for all"), (False, "each on a scale of its own")):
            figure = plot.tracks(rows, shared=shared, windows=1)
            assert figure.get_supylabel() == said
            by_name = {name: [a.get_ylim() for a in figure.axes if a.get_ylabel() == name] for name in rows}
            assert all(len(set(limits)) == 1 for limits in by_name.values())
            assert (by_name["small"][0] == by_name["large"][0]) == shared


class TestImage:
    def test_pixels_and_limits(self):
        pixels = normal(6, 5, 3)
        for given in (pixels, jnp.asarray(pixels)):
            axes = plot.image(given)
            (shown,) = axes.get_images()
            np.testing.assert_allclose(shown.get_array(), pixels.sum(2), rtol=1e-5)
            assert shown.get_clim()[1] == pytest.approx(np.abs(pixels.sum(2)).max()) == -shown.get_clim()[0]
            assert shown.cmap(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)  # zero is white
            assert shown.colorbar.ax.get_ylabel() == "contribution"
        assert len(plot.image(pixels, bar=False).figure.axes) == 1

    def test_clipping_is_stated(self):
        pixels = np.linspace(-1, 3, 99).reshape(9, 11)
        (shown,) = plot.image(pixels, percentile=90).get_images()
        end = sorted(np.abs(pixels).ravel())[88] * 0.8 + sorted(np.abs(pixels).ravel())[89] * 0.2  # 0.9 of 98 steps
        assert shown.get_clim() == pytest.approx((-end, end))
        said = shown.colorbar.ax.get_ylabel()
        assert said == f"contribution, clipped at ±{end:.3g}\n(percentile 90 of magnitudes)"
        assert shown.colorbar.extend == "max"  # nothing is below -end
        (shown,) = plot.image(pixels, limit=0.5, label="score").get_images()
        assert (shown.get_clim(), shown.colorbar.extend) == ((-0.5, 0.5), "both")
        assert shown.colorbar.ax.get_ylabel() == "score, clipped at ±0.5"
        sparse = np.eye(100)
        assert plot.image(sparse, percentile=90).get_images()[0].get_clim() == (-1, 1)

    def test_on_the_input(self):
        pixels, x = normal(6, 5), normal(6, 5, 3)
        below, above = plot.image(pixels, on=x).get_images()
        np.testing.assert_allclose(below.get_array(), x.mean(2))
        np.testing.assert_allclose(above.get_array(), pixels)
        np.testing.assert_allclose(above.get_alpha(), np.abs(pixels) / np.abs(pixels).max())

    @pytest.mark.parametrize(
        ("scores", "options", "message"),
        [
            (np.ones((3, 3, 5)), {}, r"got shape \(3, 3, 5\); channels come last"),
            (np.ones(4), {}, r"got shape \(4,\)"),
            (np.ones((0, 4)), {}, r"got shape \(0, 4\)"),
            ([[1, np.nan]], {}, r"must be finite: 1 of 2 are not, the first at \[0, 1\]"),
            (np.ones((2, 2)) * 1j, {}, "scores must be real, but have dtype complex128"),
            (np.eye(3), {"percentile": 0}, "percentile=0: expected"),
            (np.eye(3), {"limit": -1}, "limit=-1: expected a positive"),
            (np.eye(3), {"on": np.ones((4, 3, 1))}, r"of shape \(3, 3\), \(3, 3, 1\) or .* got \(4, 3, 1\)"),
        ],
    )
    def test_errors(self, scores, options, message):
        with pytest.raises(ValueError, match=message):
            plot.image(scores, **options)


def rectangles(axes):
    """The bars of a picture: from where to where, from top to bottom."""
    boxes = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_y()) for bar in axes.patches]
    assert [y for *_, y in boxes] == sorted(y for *_, y in boxes)
    assert axes.yaxis_inverted()
    return [(min(a, b), max(a, b)) for a, b, _ in boxes]


def named_rows(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


class TestTables:
    SCORES = (0.5, -3.0, 1.0, -0.25, 0.125)

    def test_bars_are_in_order_of_size(self):
        axes = plot.bars(jnp.asarray(self.SCORES), names="abcde", values=[1.5, "x", 2, 3, 4], most=3)
        assert named_rows(axes) == ["b = x", "c = 2", "3 others"]
        assert rectangles(axes) == [(-3, 0), (0, 1), (0, 0.375)]
        assert [text.get_text() for text in axes.texts] == ["-3", "+1", "+0.375"]
        reds = [to_rgba(bar.get_facecolor())[0] > 0.5 for bar in axes.patches]
        assert reds == [False, True, True]
        assert named_rows(plot.bars(self.SCORES)) == [f"feature {n}" for n in (1, 2, 0, 3, 4)]
        assert named_rows(plot.bars(self.SCORES, values=np.float32([0.1, 2, 3, 4, 5])))[2] == "feature 0 = 0.1"

    def test_waterfall_leads_from_one_output_to_the_other(self):
        axes = plot.waterfall(self.SCORES, jnp.float32(4), names="abcde", output=2.375)
        assert named_rows(axes) == [*"bcade"]
        assert rectangles(axes) == [(1, 4), (1, 2), (2, 2.5), (2.25, 2.5), (2.25, 2.375)]
        assert [text.get_text() for text in axes.texts[-2:]] == ["reference: 4", "input: 2.375"]
        low, high = axes.get_xlim()
        assert low < 1 < 4 < high
        axes = plot.waterfall(self.SCORES, 4, output=2.0, most=2)
        assert named_rows(axes) == ["feature 1", "4 others", "missing from the sum"]
        assert rectangles(axes) == [(1, 4), (1, 2.375), (2, 2.375)]
        assert plot.waterfall(self.SCORES, 4).texts[-1].get_text() == "sum: 2.375"

    @pytest.mark.parametrize(
        ("scores", "options", "message"),
        [
            (np.ones((3, 4)), {}, r"got shape \(3, 4\)"),
            ([], {}, r"got shape \(0,\)"),
            ([1, np.inf], {}, "must be finite"),
            ([1, 2], {"names": ["a"]}, "a name for each of 2 features, got 1 names"),
            ([1, 2], {"values": [1]}, r"values of shape \(2,\) as the scores have, got \(1,\)"),
            ([1, 2], {"most": 0}, "most=0"),
        ],
    )
    def test_errors(self, scores, options, message):
        for draw in (plot.bars, lambda *args, **options: plot.waterfall(*args, 0.0, **options)):
            with pytest.raises(ValueError, match=message):
                draw(scores, **options)

    def test_outputs_are_single_numbers(self):
        with pytest.raises(ValueError, match=r"output_reference as one number, got shape \(2,\)"):
            plot.waterfall([1.0], [1, 2])
        with pytest.raises(ValueError, match="output must be finite"):
            plot.waterfall([1.0], 1, output=np.nan)

    def test_signal(self):
        values = normal(12)
        axes = plot.signal(values, start=5)
        vertices = axes.collections[0].get_paths()[0].vertices
        for number, value in enumerate(values, 5):
            inside = vertices[np.abs(vertices[:, 0] - number) <= 0.5, 1]
            assert value in inside
        assert axes.get_xlim() == (4.5, 16.5)
        with pytest.raises(ValueError, match=r"got shape \(3, 4\)"):
            plot.signal(np.ones((3, 4)))


class TestSideBySide:
    def test_one_scale_or_each_its_own(self):
        small, large = normal(2, 6, 5) * [[[1]], [[50]]]
        figure = plot.side_by_side({"small": small, "large": large}, x=np.ones((6, 5, 1)), percentile=95)
        first, second, third, bar = figure.axes
        assert [axes.get_title() for axes in (first, second, third)] == ["input", "small", "large"]
        end = np.percentile(np.abs([small, large]), 95)
        for axes, scores in ((second, small), (third, large)):
            np.testing.assert_allclose(axes.get_images()[0].get_array(), scores)
            assert axes.get_images()[0].get_clim() == pytest.approx((-end, end))
        assert bar.get_ylabel() == f"contribution, clipped at ±{end:.3g}\n(percentile 95 of magnitudes)"
        assert figure.get_supxlabel() == "one scale for all"

        mine = Figure()
        figure = plot.side_by_side(
            {"small": small, "large": large}, x=np.ones((6, 5)), overlaid=True, shared=False, figure=mine, columns=1
        )
        assert figure is mine
        assert figure.get_supxlabel() == "each on a scale of its own"
        assert [len(axes.get_images()) for axes in figure.axes if axes.get_title()] == [2, 2]
        ends = [axes.get_images()[1].get_clim()[1] for axes in figure.axes if axes.get_title()]
        assert ends == [np.abs(small).max(), np.abs(large).max()]

    def test_features_are_in_one_order(self):
        scores = {"a": [1.0, -3.0, 0.1], "b": [5.0, 0.5, 0.2]}
        figure = plot.side_by_side(scores, names=["p", "q", "r"], most=2)
        assert [rectangles(axes) for axes in figure.axes] == [[(0, 1), (-2.9, 0)], [(0, 5), (0, 0.7)]]
        assert named_rows(figure.axes[0]) == ["p", "2 others"]
        assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
        figure = plot.side_by_side(scores, shared=False)
        assert named_rows(figure.axes[0]) == ["feature 0", "feature 1", "feature 2"]
        assert figure.axes[0].get_xlim() != figure.axes[1].get_xlim()

    @pytest.mark.parametrize(
        ("scores", "options", "message"),
        [
            ({}, {}, "one method or more"),
            ({"a": np.ones(3), "b": np.ones(4)}, {}, r"as many features by each method, got .*'b': \(4,\)"),
            ({"a": np.ones(3), "b": np.eye(3)}, {}, "scores of images alone"),
            ({"a": np.ones((2, 3, 3, 1))}, {}, r"scores\['a'\] of an image .* got shape \(2, 3, 3, 1\)"),
            ({"a": [[np.nan]]}, {}, r"scores\['a'\] must be finite"),
            ({"a": np.eye(3)}, {"overlaid": True}, "overlaid=True needs x"),
            ({"a": np.eye(3)}, {"x": np.ones((3, 3, 2))}, r"expected an input .* got shape \(3, 3, 2\)"),
            ({"a": np.ones(3)}, {"x": np.ones(3)}, "name features"),
        ],
    )
    def test_errors(self, scores, options, message):
        with pytest.raises(ValueError, match=message):
            plot.side_by_side(scores, **options)


class TestCurves:
    def test_means_errors_and_areas(self):
        x = jnp.asarray(normal(4, 6))
        outputs = {
            name: jaxlift.metrics.deletion(lambda x: x.sum(1), x, scores, reference=jnp.zeros(6), steps=3)
            for name, scores in {"right": x, "wrong": -x}.items()
        }
        axes = plot.curves(outputs, "deletion", label="logit")
        right, wrong = axes.get_lines()
        np.testing.assert_allclose(right.get_xdata(), [0, 1 / 3, 2 / 3, 1])
        for line, values in ((right, outputs["right"]), (wrong, outputs["wrong"])):
            np.testing.assert_allclose(line.get_ydata(), np.mean(values, 0), rtol=1e-6)
        areas = [float(np.mean(jaxlift.metrics.area(values))) for values in outputs.values()]
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert names == [f"{name}: area {area:.3g}" for name, area in zip(outputs, areas, strict=True)]
        band = axes.collections[0].get_paths()[0].vertices
        error = np.std(np.asarray(outputs["right"])[:, 1], ddof=1) / 2
        at = band[np.isclose(band[:, 0], 1 / 3), 1]
        assert (at.min(), at.max()) == pytest.approx((right.get_ydata()[1] - error, right.get_ydata()[1] + error))
        assert axes.get_ylabel() == "logit\n(mean of 4 examples, ± standard error)"
        assert axes.get_xlabel() == "fraction of the features replaced, highest scores first"

    def test_one_example(self):
        axes = plot.curves({"": [0.0, 1, 2]}, "insertion")
        assert not axes.collections
        assert axes.get_ylabel() == "output"
        assert axes.get_legend().get_texts()[0].get_text() == "area 1"

    @pytest.mark.parametrize(
        ("outputs", "kind", "message"),
        [
            ({}, "deletion", "got none"),
            ({"a": [1.0, 2]}, "erasure", "expected 'deletion' or 'insertion'"),
            ({"a": [[1.0]]}, "deletion", r"of shape \(N, steps \+ 1\) or .* got \(1, 1\)"),
            ({"a": [[1.0, np.nan]]}, "deletion", r"outputs\['a'\] must be finite"),
        ],
    )
    def test_errors(self, outputs, kind, message):
        with pytest.raises(ValueError, match=message):
            plot.curves(outputs, kind)


class TestText:
    @pytest.mark.parametrize(
        ("tokens", "words", "firsts"),
        [
            ("[CLS] un ##believ ##able , no [SEP]", ["[CLS]", "unbelievable", ",", "no", "[SEP]"], [0, 1, 4, 5, 6]),
            ("<s> ▁un believ able , ▁caf <0xC3> <0xA9> </s>", ["<s>", "unbelievable,", "café", "</s>"], [0, 1, 5, 8]),
            ("un believ able Ġcaf Ã © Ġ5 $ <|endoftext|> the", ["unbelievable", "café", "5$", "<|endoftext|>", "the"],
             [0, 3, 6, 8, 9]),
            ("plain words here", ["plain", "words", "here"], [0, 1, 2]),
        ],
    )  # fmt: skip
    def test_pieces_are_joined_and_their_scores_summed(self, tokens, words, firsts):
        tokens = tokens.split()
        scores = normal(len(tokens), 3)
        found = plot.text(tokens, jnp.asarray(scores))
        assert found.words == tuple(words)
        ends = [*firsts[1:], len(tokens)]
        sums = [scores[first:end].sum() for first, end in zip(firsts, ends, strict=True)]
        np.testing.assert_allclose(found.scores, sums, rtol=1e-5)
        assert found.limit == np.abs(found.scores).max()
        assert plot.text(tokens, scores, pieces="words").words == tuple(tokens)

    def test_line_breaks_and_codes_are_shown(self):
        assert plot.text(["a\x1b[2J", "\n"], [1.0, 2.0]).words == ("a·[2J", "↵")
        assert plot.text(["Ġa", "Ċ"], [1.0, 2.0]).words == ("a↵",)

    def test_colours_are_those_of_the_map(self):
        shares = np.linspace(-1, 1, 11)
        found = plot.text(["<b>"] * 11, 2 * shares, limit=2)
        grounds = re.findall(r"background-color: (#\w{6}); color: (#\w{6})", found.html())
        wanted = matplotlib.colormaps[plot.DIVERGING](shares / 2 + 0.5)
        np.testing.assert_allclose([to_rgba(ground) for ground, _ in grounds], wanted, atol=0.02)
        assert [ink for _, ink in grounds][::5] == ["#ffffff", "#000000", "#ffffff"]
        assert found._repr_html_() == found.html()
        assert found.html().count("&lt;b&gt;") == 11
        assert 'title="-1.6"' in found.html()
        codes = re.findall(r"\x1b\[48;2;(\d+);(\d+);(\d+)m\x1b\[38;2;[\d;]+m<b>\x1b\[0m", str(found))
        np.testing.assert_allclose(np.array(codes, int) / 255, wanted[:, :3], atol=0.02)

    def test_rich(self):
        shown = plot.text(["not", "good"], [-1.0, 0.5]).__rich__()
        assert shown.plain == "not good"
        assert [str(span.style) for span in shown.spans] == ["#ffffff on #053061", "#000000 on #e58368"]

    def test_drawn(self):
        mine = Figure((3, 2)).add_subplot()
        found = plot.text(["$a$", "long" * 5, "long" * 5, "b"], [1.0, -2, 0, 0.5])
        axes = found.draw(ax=mine)
        assert axes is mine
        assert tuple(text.get_text() for text in axes.texts) == found.words
        axes.figure.draw_without_rendering()
        boxes = [text.get_bbox_patch().get_window_extent() for text in axes.texts]
        assert boxes[0].x1 < boxes[1].x0
        assert boxes[1].y0 > boxes[2].y1  # in lines as wide as the axes
        assert all(box.x1 <= axes.bbox.x1 for box in boxes)
        assert to_rgba(axes.texts[1].get_bbox_patch().get_facecolor()) == to_rgba("#053061")

    @pytest.mark.parametrize(
        ("tokens", "scores", "options", "message"),
        [
            (["a", "b"], [1.0], {}, r"got scores of shape \(1,\) and 2 tokens"),
            ("ab", [1.0, 2.0], {}, r"and 1 tokens"),
            ([], [], {}, "T >= 1"),
            (["a"], [[[1.0]]], {}, r"shape \(1, 1, 1\)"),
            (["a"], [np.nan], {}, "must be finite"),
            ([1, 2], [1.0, 2.0], {}, "tokens must be strings"),
            (["a"], [1.0], {"pieces": "BPE"}, "pieces='BPE': expected 'auto', 'bpe'"),
            (["a"], [1.0], {"limit": 0}, "limit=0: expected a positive"),
        ],
    )
    def test_errors(self, tokens, scores, options, message):
        with pytest.raises(ValueError, match=message):
            plot.text(tokens, scores, **options)


class TestToShap:
    NAMES = ("age", "weight", "height")

    @pytest.fixture
    def explained(self):
        x = jnp.asarray(normal(4, 3))
        model = lambda x: jnp.stack([jnp.tanh(x[:, 0]) * x[:, 1] + x[:, 2], x.sum(1)], 1)  # noqa: E731
        return model, x, lambda target: jaxlift.attribute(model, target=target, full=True)(x, reference=jnp.ones(3))

    def test_values_and_base_values_sum_to_outputs(self, explained):
        pytest.importorskip("shap")
        model, x, attr = explained
        one = plot.to_shap(attr(0), data=x, names=self.NAMES)
        np.testing.assert_allclose(one.values.sum(1) + one.base_values, model(x)[:, 0], atol=1e-5)
        np.testing.assert_array_equal(one.data, x)
        assert list(one.feature_names) == list(self.NAMES)
        found = attr("all")
        several = plot.to_shap(found.scores, found.output_reference, data=x, output_names=["a", "b"])
        assert several.shape == (4, 3, 2)
        np.testing.assert_allclose(several[..., 1].values, attr(1).scores, atol=1e-6)
        np.testing.assert_allclose(several.values.sum(1) + several.base_values, model(x), atol=1e-5)

    def test_its_plots_draw_them(self, explained):
        shap, pyplot = pytest.importorskip("shap"), pytest.importorskip("matplotlib.pyplot")
        model, x, attr = explained
        explanation = plot.to_shap(attr(0), data=x, names=self.NAMES)
        axes = shap.plots.waterfall(explanation[0], show=False)
        drawn = " ".join(text.get_text() for each in axes.figure.axes for text in each.texts + each.get_xticklabels())
        assert f"{float(model(x)[0, 0]):.3f}".lstrip("-") in drawn
        pyplot.close("all")
        axes = shap.plots.bar(explanation, show=False)
        mean = np.abs(attr(0).scores).mean(0)
        widths = sorted(bar.get_width() for bar in axes.patches if bar.get_width())
        np.testing.assert_allclose(widths, sorted(mean), rtol=1e-5)
        pyplot.close("all")

    @pytest.mark.parametrize(
        ("scores", "base", "options", "message"),
        [
            (np.ones((2, 3)), None, {}, "need output_reference"),
            (np.ones((2, 3)), np.ones(3), {}, r"got \(2, 3\) with \(3,\)"),
            (np.ones(3), np.ones(3), {}, r"got \(3,\) with \(3,\)"),
            (np.ones((2, 3)), np.ones(2), {"data": np.ones((2, 4))}, r"data of shape \(2, 3\).*got \(2, 4\)"),
            (np.ones((2, 3)), 1.0, {"names": ["a"]}, "expected 3 names"),
            (np.ones((2, 3)), 1.0, {"output_names": ["a"]}, "expected 0 output_names"),
            (np.full((2, 3), np.nan), 1.0, {}, "scores must be finite"),
            (jaxlift.Attribution(np.ones((2, 3))), None, {}, "have no sum"),
            (jaxlift.Attribution(np.ones((2, 3)), 0, output_reference=1), 1.0, {}, "is in the attribution"),
            ({"a": np.ones((2, 3))}, 1.0, {}, "several inputs"),
        ],
    )
    def test_errors(self, scores, base, options, message):
        with pytest.raises(ValueError, match=message):
            plot.to_shap(scores, base, **options)

    def test_multipliers_are_refused(self, explained):
        model, x, _ = explained
        for options in ({"target": 0}, {"target": "all"}):
            attr = jaxlift.attribute(model, output="multipliers", full=True, **options)
            with pytest.raises(ValueError, match="these scores are no contributions"):
                plot.to_shap(attr(x, reference=jnp.ones(3)))

    def test_scores_that_leave_some_of_the_difference_out(self, explained):
        pytest.importorskip("shap")
        _, x, _ = explained
        occluded = jaxlift.occlusion(lambda x: jnp.prod(1 + x, 1), full=True)(x[:2], reference=jnp.zeros(x.shape[1]))
        with pytest.warns(UserWarning, match="2 of these scores don't sum to the difference of the outputs") as w:
            plot.to_shap(occluded)
        assert w[0].filename == __file__


def test_matplotlib_is_imported_when_it_is_needed():
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(name, *_):\n"
        "        if name in ('matplotlib', 'shap'): raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "from jaxlift import plot\n"
        "print(plot.observed([[1.0, 2.0]], [[0, 1]]))\n"
        "try: plot.logo([[1.0, 2, 3, 4]])\n"
        "except ModuleNotFoundError as error: print(error)\n"
        "print(plot.text(['a'], [1.0])._repr_html_().count('<span title'))\n"
        "try: plot.to_shap([[1.0]], 0.0)\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == (
        "[[0. 3.]]\nthis needs matplotlib, which is not installed: pip install 'jaxlift[plot]'\n"
        "1\nthis needs shap, which is not installed: pip install shap\n"
    )


def genome(path, contigs):
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores: of a genome with two outputs, and with hypothetical scores; of a table; of an image; of plain numbers."""
    folder = tmp_path_factory.mktemp("plots")
    rng = np.random.default_rng(0)
    contigs = {name: "".join(rng.choice([*"ACGT"], 400)) for name in ("chr1", "chr2")}
    contigs["chr2"] = contigs["chr2"][:150] + "N" + contigs["chr2"][151:]
    regions = Regions(["chr1", "chr1", "chr2", "chr2"], [100, 200, 140, 10], [140, 240, 180, 50], strand=[*"+-.."],
                      name=["first", "reverse", "twice", "twice"])  # fmt: skip
    windows = Windows(genome(folder / "genome.fa", contigs), regions, scored.LENGTH)
    both = jaxlift.attribute(scored.model, target=named(one=1, other=2))
    options = {"batch_size": 4, "progress": "none", "devices": jax.local_devices()[:1]}
    jaxlift.score(both, windows, out=folder / "both.zarr", reference="dinucleotide_shuffle", shuffles=5, **options)
    attr = jaxlift.attribute(scored.model, target=1, output="hypothetical")
    jaxlift.score(attr, windows, out=folder / "hyp.zarr", reference="frequencies", **options)
    total = jaxlift.attribute(scored.total)
    for name, shape in {
        "table": (3, 12),
        "signal": (3, 300),
        "image": (3, 8, 8),
        "video": (3, 2, 3, 4, 5),
        "plain": (3, 10, 4),
    }.items():
        jaxlift.score(total, rng.random(shape, np.float32), out=folder / f"{name}.zarr", reference="zeros", **options)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """The command, in a folder of its own; returns its exit code, what it prints, and the figure that it saves."""
    monkeypatch.chdir(tmp_path)
    for store in folder.glob("*.zarr"):
        (tmp_path / store.name).symlink_to(store)

    def run(text):
        saved = []
        save = Figure.savefig
        with monkeypatch.context() as patched:
            patched.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k))[1])
            code = main(f"plot {text}".split())
        out, err = capsys.readouterr()
        return code, out or err, saved[0] if saved else None

    return run


class TestCommand:
    def test_all_targets_on_the_letters_that_are_there(self, run, folder):
        code, out, figure = run("both.zarr first")
        assert (code, out) == (0, "both-0.png\n")
        assert matplotlib.image.imread("both-0.png").std() > 0.01
        store = Store(folder / "both.zarr", "r")
        assert [axes.get_ylabel() for axes in figure.axes] == ["one", "other"]
        for axes, target in zip(figure.axes, store.targets, strict=True):
            wanted = plot.observed(store.scored(0, 1, target)[0], store.one_hot(0, 1)[0])
            assert axes.get_xlim() == (99.5, 139.5)
            limit = max(np.abs(axes.get_ylim()))
            np.testing.assert_allclose(drawn(axes, 40, 100), wanted, atol=0.011 * limit)

    def test_one_target_and_places_in_the_genome(self, run):
        code, out, figure = run("both.zarr 1 --target other --span chr1:205-206=variant --span 0:4 --out a.svg")
        assert (code, out) == (0, "a.svg\n")
        (axes,) = figure.axes
        assert axes.get_xlim() == (239.5, 199.5)
        shaded = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
        assert shaded == [(204.5, 205.5), (235.5, 239.5)]
        assert [text.get_text() for text in axes.texts] == ["variant"]
        assert figure.get_suptitle() == "example 1 (reverse): contributions"
        assert Path("a.svg").read_text().count("<path") > 20

    @pytest.mark.parametrize(("positions", "limits"), [("5:15", (234.5, 224.5)), ("chr1:1,225-235", None)])
    def test_positions_of_the_other_strand(self, run, positions, limits):
        code, out, figure = run(f"hyp.zarr reverse --positions {positions}")
        if limits is None:
            assert (code, figure) == (2, None)
            assert "positions chr1:1225-235 are not within the example's chr1:200-240" in out
        else:
            assert figure.axes[0].get_xlim() == limits

    def test_hypothetical_letters_on_request(self, run, folder):
        store = Store(folder / "hyp.zarr", "r")
        scores, one_hot = store.scored(2, 3)[0], store.one_hot(2, 3)[0]
        assert one_hot.sum() == 39
        for option, wanted in (("", scores * one_hot), (" --hypothetical", scores)):
            _, _, figure = run(f"hyp.zarr 2{option}")
            axes = figure.axes[0]
            np.testing.assert_allclose(drawn(axes, 40, 140), wanted, atol=0.011 * max(np.abs(axes.get_ylim())))

    def test_tables_and_images_and_plain_letters(self, run):
        assert len(named_rows(run("table.zarr 1")[2].axes[0])) == 10  # 9 of 12, and the others
        assert run("signal.zarr 1")[2].axes[0].get_xlim() == (-0.5, 299.5)
        assert len(run("image.zarr 1")[2].axes[0].get_images()) == 1
        axes = run("plain.zarr 1 --letters ACGT --positions 2:8")[2].axes[0]
        assert len(glyphs(axes)) > 18  # the scores' own, for there is no sequence
        assert axes.get_xlim() == (1.5, 7.5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("both.zarr 4", "there is no example 4: the store has 4, from 0."),
            ("both.zarr frist", "there is no example 'frist': did you mean first?"),
            ("plain.zarr first", "there is no example 'first': give one's number, 0 to 2."),
            ("both.zarr twice", "2 examples have the name 'twice': give the number of one, such as 2, 3."),
            ("both.zarr 0 --target first", "both.zarr has no target 'first'; it has one, other."),
            ("hyp.zarr 0 --target one", "hyp.zarr has no target 'one'; it has none, but scores of one output."),
            ("both.zarr 0 --hypothetical", "both.zarr has contributions: score with --output hypothetical."),
            ("both.zarr 0 --span chr2:100-110", "positions chr2:100-110 are not within the example's chr1:100-140."),
            ("both.zarr 0 --span 30:50", "positions 30:50 are not within the example's 0:40."),
            ("both.zarr 0 --positions 9:9", "positions 9:9 are not within"),
            (
                "plain.zarr 0 --letters ACGT --span chr1:1-2",
                "this store has no coordinates, give positions as FROM:TO.",
            ),
            ("table.zarr 0 --positions 1:2", "are for sequences: say with --letters what the channels stand for"),
            ("table.zarr 0 --letters ACGT", "--letters ACGT need scores of shape (L, 4), got (12,)"),
            ("video.zarr 0", "there is no picture for scores of shape (2, 3, 4, 5)"),
        ],
    )
    def test_errors(self, run, arguments, message):
        code, err, figure = run(arguments)
        assert (code, figure) == (2, None)
        assert message in err

    def test_a_span_that_is_none(self, run, capsys):
        with pytest.raises(SystemExit):
            run("both.zarr 0 --span x")
        assert "expected FROM:TO, two positions such as 10:60" in capsys.readouterr().err

    def test_many_targets_are_too_many(self, run, monkeypatch):
        monkeypatch.setattr(command, "TRACKS", 1)
        assert "has 2 outputs: choose one with --target, such as one." in run("both.zarr 0")[1]
