"""Targets of sequence models by name, weights that are held, and ensembles: compared with their plain formulas."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxlift
from jaxlift import Held, metrics
from jaxlift.genomics import targets
from jaxlift.genomics._ensemble import ensemble, reverse_complement

N, R, LENGTH, POSITIONS, TRACKS = 3, 2, 12, 8, 2
RNG = np.random.default_rng(11)
KERNEL = RNG.normal(size=(5, 4, 6))
PROFILE, COUNTS = RNG.normal(size=(6, TRACKS)), RNG.normal(size=(6, TRACKS))
SHIFTS = RNG.normal(size=(N, POSITIONS, TRACKS))
X = np.eye(4)[RNG.integers(0, 4, (N, LENGTH))]
REFERENCES = np.eye(4)[RNG.integers(0, 4, (R, LENGTH))]
Outputs = collections.namedtuple("Outputs", ["profile", "counts"])


def network(x, kernel=KERNEL):
    """A small BPNet: `(N, LENGTH, 4)` to profiles `(N, POSITIONS, TRACKS)` and log counts `(N, TRACKS)`."""
    h = jax.lax.conv_general_dilated(
        x, jnp.asarray(kernel, x.dtype), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    h = checkpoint_name(jax.nn.relu(h), "hidden")
    h = jnp.tanh(h)
    return {"profile": 3 * h @ jnp.asarray(PROFILE, x.dtype), "counts": h.mean(1) @ jnp.asarray(COUNTS, x.dtype)}


def profile_of(x):
    return network(x)["profile"]


def softmax(logits):
    """Over all axes but the first, in NumPy."""
    exp = np.exp(logits - logits.max(tuple(range(1, logits.ndim)), keepdims=True))
    return exp / exp.sum(tuple(range(1, logits.ndim)), keepdims=True)


def centred(logits):
    return logits - logits.mean(tuple(range(1, logits.ndim)), keepdims=True)


def attribute(model, x=X, reference=REFERENCES, *args, **options):
    """Compiled, and with all that there is."""
    attr = jax.jit(jaxlift.attribute(model, full=True, **options))
    return attr(jnp.asarray(x), *args, reference=jnp.asarray(reference))


def same(found, expected, rtol=1e-12):
    for name in ("scores", "output", "output_reference"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol, 1e-13, err_msg=name)


@pytest.mark.usefixtures("x64")
class TestHeld:
    """Against weights that are computed by NumPy beforehand, and given as numbers."""

    held = Held(lambda logits: jax.nn.softmax(logits, (1, 2)), lambda outputs: outputs["profile"])

    def weights(self, x=X):
        return jnp.asarray(softmax(np.asarray(profile_of(jnp.asarray(x)))))

    @pytest.mark.parametrize("rule", ["rescale", "revealcancel", "gradient", "epsilon_lrp"])
    @pytest.mark.parametrize("average", [True, False])
    def test_rules(self, rule, average):
        rule = jaxlift.EpsilonLRP() if rule == "epsilon_lrp" else rule
        options = {"rule": rule, "average": average}
        same(
            attribute(network, target=self.held, **options),
            attribute(profile_of, target=self.weights(), **options),
        )

    @pytest.mark.parametrize(
        ("reference", "pairing"),
        [
            (REFERENCES[0], None),
            (X[::-1], "paired"),
            (np.stack([X[::-1], np.roll(X, 1, 1)], 1), None),
        ],
    )
    def test_references(self, reference, pairing):
        same(
            attribute(network, reference=reference, target=self.held, pairing=pairing),
            attribute(profile_of, reference=reference, target=self.weights(), pairing=pairing),
        )

    @pytest.mark.parametrize("sizes", [{"batch_size": 2}, {"reference_batch_size": 1}])
    def test_batches(self, sizes):
        same(attribute(network, target=self.held, **sizes), attribute(profile_of, target=self.weights()), 1e-10)

    @pytest.mark.parametrize("output", ["multipliers", "hypothetical"])
    def test_outputs(self, output):
        same(
            attribute(network, target=self.held, output=output),
            attribute(profile_of, target=self.weights(), output=output),
        )

    def test_layer(self):
        same(
            attribute(network, target=self.held, layer="hidden"),
            attribute(profile_of, target=self.weights(), layer="hidden"),
        )

    @pytest.mark.parametrize(
        ("method", "options"),
        [
            (jaxlift.integrated_gradients, {"steps": 5}),
            (jaxlift.occlusion, {"window": (1, 4)}),
            (jaxlift.shapley, {"groups": np.arange(LENGTH)[:, None] // 4}),
            (jaxlift.shapley, {"groups": np.arange(LENGTH)[:, None] // 4, "samples": 3}),
        ],
    )
    @pytest.mark.slow
    def test_methods(self, method, options):
        found, expected = (
            method(model, target=target, full=True, **options)(jnp.asarray(X), reference=jnp.asarray(REFERENCES[0]))
            for model, target in ((network, self.held), (profile_of, self.weights()))
        )
        same(found, expected)

    def test_methods_without_references(self):
        x = jnp.asarray(X)
        for method, options in ((jaxlift.mutagenesis, {}), (jaxlift.grad_cam, {"layer": "hidden"})):
            found, expected = (
                method(model, target=target, **options)(x)
                for model, target in ((network, self.held), (profile_of, self.weights()))
            )
            np.testing.assert_allclose(found, expected, 1e-12, 1e-14)

    def test_values_and_weights_of_a_row_of_each_example(self):
        """A pytree of values; the expected scores are those of the sum written out, with what is held as a number."""
        held = Held(
            lambda values, shift: {
                "a": jax.nn.softmax(values["a"] + shift, (1, 2)),
                "b": jnp.full_like(values["b"], 2),
            },
            lambda outputs, shift: {"a": outputs["profile"] * shift, "b": outputs["counts"]},
            rows=(SHIFTS,),
        )
        values = np.asarray(profile_of(jnp.asarray(X))) * SHIFTS
        weights = softmax(values + SHIFTS)

        def written_out(x, shift, weights):
            outputs = network(x)
            return (weights * outputs["profile"] * shift).sum((1, 2)) + 2 * outputs["counts"].sum(1)

        rows = jnp.asarray(SHIFTS), jnp.asarray(weights)
        expected = attribute(written_out, X, REFERENCES, *rows, batch_argnums=(1, 2))
        same(attribute(network, target=held), expected, 1e-10)
        attr = jaxlift.attribute(network, full=True, pairing="shared")  # as an argument of what is compiled
        compiled = jax.jit(lambda x, target: attr(x, reference=jnp.asarray(REFERENCES), target=target))
        same(compiled(jnp.asarray(X), held), expected, 1e-10)
        two = jax.tree.map(lambda row: row[1:], held)
        np.testing.assert_allclose(compiled(jnp.asarray(X[1:]), two).scores, expected.scores[1:], 1e-10, 1e-13)

    def test_arguments_of_each_example(self):
        def shifted(x, shift):
            return network(x)["profile"] + shift

        held = Held(lambda logits: jax.nn.softmax(logits, (1, 2)))
        weights = softmax(np.asarray(shifted(jnp.asarray(X), SHIFTS)))
        found, expected = (
            attribute(shifted, X, REFERENCES, jnp.asarray(SHIFTS), batch_argnums=(1,), target=target)
            for target in (held, jnp.asarray(weights))
        )
        same(found, expected)

    def test_vmap(self):
        attr = jaxlift.attribute(network, target=self.held)
        x = jnp.stack([jnp.asarray(X), jnp.asarray(X[::-1])])
        mapped = jax.vmap(lambda x: attr(x, reference=jnp.asarray(REFERENCES)))(x)
        np.testing.assert_allclose(mapped[1], mapped[0][::-1], 1e-12, 1e-14)

    def test_names(self):
        """Several sums of the same values, each with scores as if alone."""
        held = Held(
            lambda y: jnp.stack([jax.nn.softmax(y, (1, 2)), jnp.ones_like(y)], 1),
            lambda outputs: outputs["profile"],
            names=("a", "b"),
        )
        for rule in ("rescale", "revealcancel"):
            found = attribute(network, target=held, rule=rule, average=False)
            assert found.scores.shape == (N, R, 2, LENGTH, 4)
            assert found.delta.shape == found.output.shape == found.output_reference.shape == (N, R, 2)
            for i, weights in enumerate((self.weights(), jnp.ones((POSITIONS, TRACKS)))):
                alone = attribute(profile_of, target=weights, rule=rule, average=False)
                np.testing.assert_allclose(found.scores[:, :, i], alone.scores, 1e-12, 1e-14)
                np.testing.assert_allclose(found.output[:, :, i], alone.output, 1e-12)


def test_what_is_held_costs_no_pass_of_the_model():
    """Neither in operations of the compiled program, nor in convolutions of the one that is given to the compiler."""

    def lowered(model, target):
        attr = jaxlift.attribute(model, target=target)
        return jax.jit(lambda x, r: attr(x, reference=r)).lower(jnp.float32(X), jnp.float32(REFERENCES))

    programs = [lowered(network, TestHeld.held), lowered(profile_of, jnp.ones((POSITIONS, TRACKS)))]
    held, known = (program.compile().cost_analysis()["flops"] for program in programs)
    assert held <= known + N * R * 20 * POSITIONS * TRACKS  # a softmax, and the weighted sum of its values
    assert len({program.as_text().count("stablehlo.convolution") for program in programs}) == 1


def test_the_usual_heads():
    """Those called counts and profile need no name."""
    outputs = network(jnp.float32(X))
    np.testing.assert_array_equal(targets.log_counts()(outputs), targets.log_counts("counts")(outputs))
    np.testing.assert_array_equal(targets.profile()(outputs), targets.profile("profile")(outputs))
    assert targets.from_text("counts,profile_held").names == ("counts", "profile_held")


@pytest.mark.parametrize(("head", "numbers"), [("counts", (1,)), ("profile", (2, 0)), ("counts", ())])
def test_a_head_itself(head, numbers):
    outputs = network(jnp.float32(X))
    wanted = [outputs[head][i][numbers] for i in range(len(X))]
    np.testing.assert_array_equal(targets.of_head(head, numbers)(outputs), wanted)
    with pytest.raises(ValueError, match="no output"):
        targets.of_head("counts", (5,))(outputs)


class TestErrors:
    x, reference = jnp.float32(X), jnp.float32(REFERENCES[0])

    def raises(self, message, target, error=ValueError, model=network, **options):
        with pytest.raises(error, match=message):
            jaxlift.attribute(model, target=target, **options)(self.x, reference=self.reference)

    def test_held(self):
        self.raises(
            r"the rows of a held target must have length 3.*\(2, 8\)", Held(jnp.ones_like, rows=(np.ones((2, 8)),))
        )
        self.raises("expected .*'counts': .1, 2.* got .1, 2.", Held(lambda y: y["counts"]))
        named = Held(lambda y: y, lambda y: y["counts"], names=("a", "b"))
        self.raises(r"for each name: expected \(1, 2, 2\)", named)
        self.raises("but the target is a function", Held(jnp.ones_like), normalize_target=True)
        self.raises("must be batched", Held(jnp.ones_like, lambda y: y["counts"].sum()))
        with pytest.raises(TypeError, match="Held takes functions of a batch, but weights is a ndarray"):
            Held(np.ones(3))
        with pytest.raises(TypeError, match=r"for one array, write rows=\(array,\)"):
            Held(jnp.ones_like, rows=np.ones((3, 8)))
        with pytest.raises(ValueError, match="a held target has the weights of one input"):
            metrics.deletion(
                lambda x: network(x)["counts"],
                self.x,
                self.x,
                reference=self.reference,
                steps=2,
                target=Held(jnp.ones_like),
            )

    def test_heads(self):
        heads = r"there are 'counts' \(1, 2\), 'profile' \(1, 8, 2\)"
        self.raises(f"no head 'count': {heads}", targets.log_counts("count"))
        self.raises(f"Say head=: {heads}", targets.weighted(np.ones(8)))
        other = "Say head=: there are 'logits' .1, 8, 2., 'reads' .1, 2."

        def others(x):
            return {"logits": profile_of(x), "reads": network(x)["counts"]}

        self.raises(other, targets.profile(), model=others)
        self.raises(
            r"no head 2: there are 'profile' \(1, 8, 2\), 'counts'", targets.log_counts(2), model=as_named_tuple
        )
        self.raises("no head 'a': there is one array", targets.log_counts("a"), model=profile_of)
        self.raises("no head 'b': there is one array", targets.log_counts(("counts", "b")))

    def test_shapes(self):
        self.raises(r"log counts have the shape .* has \(1, 8, 2\)", targets.log_counts("profile"))
        self.raises("softmax needs several logits", targets.profile("counts", axis=()), model=network)
        self.raises("axis=2 must be an axis of one example", targets.profile("profile", axis=2))
        self.raises(r"weights of shape \(2,\) don't fit .* \(8, 2\)", targets.weighted(np.ones(2), "profile"))
        each = targets.weighted(np.ones((4, 8)), "profile", per_example=True)
        self.raises("the rows of a held target must have length 3", each)
        self.raises("after that of the examples", targets.weighted(np.ones((3, 7)), "profile", per_example=True))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: targets.profile(softmax="fixed"), "softmax='fixed' must be one of 'explained', 'held'"),
            (lambda: targets.weighted([1.0, np.nan]), "weights must be finite"),
            (lambda: targets.log_mean([0.0, 0.0]), "a mean needs weights of 0 or more that aren't all 0"),
            (lambda: targets.log_mean([2.0, -1.0]), "a mean needs weights of 0 or more"),
            (lambda: targets.log_mean([[1.0], [0.0]], per_example=True), "those of the examples 1 are 0"),
            (lambda: targets.named(), "named takes one target or more"),
            (lambda: targets.named(a=targets.named(b=0)), "named takes one target or more, none of which has names"),
            (lambda: targets.difference(targets.named(a=0), 1), r"targets of the same names, got \('a',\) and \(\)"),
            (lambda: targets.held("all"), "write weighted"),
            (lambda: targets.held(np.ones(3)), "write weighted"),
            (
                lambda: targets.from_text("count"),
                "no target is called 'count': there are counts, profile, profile_held",
            ),
            (lambda: targets.from_text("counts@"), "no target is called 'counts@'"),
            (lambda: targets.from_text("counts,counts"), "names a target twice"),
            (lambda: targets.from_text(""), "no target is called ''"),
            (lambda: ensemble([]), "needs one model at least"),
            (lambda: ensemble(network, strands="reverse"), "strands='reverse' must be one of"),
            (lambda: reverse_complement(np.ones((2, 5, 3))), r"\(N, L, 4\) or \(N, 4, L\), got the shape \(2, 5, 3\)"),
        ],
    )
    def test_arguments(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


def as_named_tuple(x):
    return Outputs(**network(x))


def deep(x):
    return {"human": [network(x), 0.0 * x]}


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (network, "counts"),
        (as_named_tuple, "counts"),
        (as_named_tuple, 1),
        (lambda x: tuple(as_named_tuple(x)), 1),
        (deep, ("human", 0, "counts")),
        (lambda x: network(x)["counts"], None),
    ],
)
def test_heads(model, head):
    found = targets.log_counts(head)(model(jnp.float32(X)))
    np.testing.assert_allclose(found, network(jnp.float32(X))["counts"].sum(1), 1e-6)


@pytest.mark.usefixtures("x64")
class TestFormulas:
    """Values, and contributions to a linear model, which are known: those of its weights."""

    x = RNG.normal(size=(N, 5))
    matrix = RNG.normal(size=(5, POSITIONS, TRACKS))

    def linear(self, x):
        return jnp.tensordot(x, jnp.asarray(self.matrix), 1)

    def found(self, target, **options):
        return attribute(self.linear, self.x, np.zeros(5), target=target, **options)

    def test_log_counts(self):
        y = RNG.normal(size=(4, 3))
        np.testing.assert_allclose(targets.log_counts()(y), [row[0] + row[1] + row[2] for row in y])
        np.testing.assert_allclose(targets.log_counts()(y[:, 0]), y[:, 0])

    @pytest.mark.parametrize("axis", [None, 0, (0, 1), -2])
    def test_profile_held(self, axis):
        logits = np.tensordot(self.x, self.matrix, 1)
        expected = np.zeros_like(self.x)
        for k in range(TRACKS):
            tracks = [k] if axis in (0, -2) else list(range(TRACKS))
            if tracks[0] != k:
                continue
            w = softmax(logits[..., tracks])
            own = self.matrix[..., tracks]
            expected += self.x * ((own - own.mean((1, 2), keepdims=True))[None] * w[:, None]).sum((2, 3))
            if axis in (None, (0, 1)):
                break
        found = self.found(targets.profile(softmax="held", axis=axis))
        np.testing.assert_allclose(found.scores, expected, 1e-10, 1e-13)
        np.testing.assert_allclose(found.output, expected.sum(1), 1e-10, 1e-13)
        np.testing.assert_allclose(found.output_reference, 0, atol=1e-14)

    @pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
    def test_profile_explained(self, rule):
        logits = np.tensordot(self.x, self.matrix, 1)
        found = self.found(targets.profile(), rule=rule)
        value = (softmax(logits) * centred(logits)).sum((1, 2))
        np.testing.assert_allclose(found.output, value, 1e-10)
        np.testing.assert_allclose(found.scores.sum(1), value, 1e-9)  # at the reference it is 0

    def test_stopping_the_gradient_is_not_holding(self):
        """As the module says: it explains the softmax, like a target without it."""

        def stopped(logits):
            logits = logits - logits.mean((1, 2), keepdims=True)
            return (jax.nn.softmax(jax.lax.stop_gradient(logits), (1, 2)) * logits).sum((1, 2))

        ways = stopped, targets.profile(), targets.profile(softmax="held")
        stop, explained, held = (attribute(self.linear, self.x, self.x[:2], target=way).scores for way in ways)
        np.testing.assert_allclose(stop, explained, 1e-10)
        assert np.abs(stop - held).max() > 0.1

    @pytest.mark.parametrize("shape", [(POSITIONS,), (POSITIONS, TRACKS), (N, POSITIONS), (N, POSITIONS, TRACKS)])
    def test_weighted(self, shape):
        weights = RNG.normal(size=shape)
        per_example = shape[0] == N
        each = weights if per_example else np.broadcast_to(weights, (N, *shape))
        each = np.broadcast_to(each if each.ndim == 3 else each[..., None], (N, POSITIONS, TRACKS))
        expected = self.x * np.einsum("npt,ipt->ni", each, self.matrix)
        found = self.found(targets.weighted(weights, per_example=per_example))
        np.testing.assert_allclose(found.scores, expected, 1e-10, 1e-13)

    @pytest.mark.parametrize("per_example", [False, True])
    def test_log_mean(self, per_example):
        weights = RNG.uniform(size=(N, POSITIONS) if per_example else (POSITIONS,))
        target = targets.log_mean(weights, per_example=per_example, pseudocount=0.5)
        found = attribute(lambda x: jnp.exp(self.linear(x)), self.x, np.zeros(5), target=target)
        y = np.exp(np.tensordot(self.x, self.matrix, 1))
        each = np.broadcast_to(weights, (N, POSITIONS))
        means = [sum(own[i] * rows[i].sum() for i in range(POSITIONS)) for own, rows in zip(each, y, strict=True)]
        means /= TRACKS * each.sum(1)
        np.testing.assert_allclose(found.output, np.log(means + 0.5), 1e-12)
        np.testing.assert_allclose(found.output_reference, np.log(1.5), 1e-12)
        np.testing.assert_allclose(found.scores.sum(1), found.output - found.output_reference, 1e-10)

    def test_weights_that_are_traced(self):
        x = jnp.asarray(self.x)

        @jax.jit
        def scores(weights):
            attr = jaxlift.attribute(self.linear, target=targets.weighted(weights, per_example=True))
            return attr(x, reference=jnp.zeros(5))

        weights = RNG.normal(size=(N, POSITIONS))
        np.testing.assert_allclose(
            scores(jnp.asarray(weights)), self.x * np.einsum("np,ipt->ni", weights, self.matrix), 1e-10, 1e-13
        )


@pytest.mark.usefixtures("x64")
class TestTogether:
    both = targets.named({"counts": targets.log_counts("counts")}, profile=targets.profile("profile", "held"))

    @pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
    def test_named(self, rule):
        weights = targets.weighted(SHIFTS, "profile", per_example=True)
        parts = {
            "counts": targets.log_counts("counts"),
            "profile": targets.profile("profile", softmax="held"),
            "mine": weights,
            "explained": targets.profile("profile"),
        }
        together = targets.named(parts)
        assert together.names == tuple(parts)
        found = attribute(network, target=together, rule=rule)
        assert found.scores.shape == (N, len(parts), LENGTH, 4)
        for i, part in enumerate(parts.values()):
            alone = attribute(network, target=part, rule=rule)
            for name in ("scores", "output", "output_reference"):
                np.testing.assert_allclose(getattr(found, name)[:, i], getattr(alone, name), 1e-9, 1e-12)

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (targets.profile("profile", softmax="held"), targets.log_counts("counts")),
            (targets.log_counts("counts"), targets.profile("profile")),
            (targets.weighted(SHIFTS, "profile", per_example=True), targets.weighted(np.arange(8.0), "profile")),
            (both, targets.named(counts=targets.weighted([1.0, 0], "counts"), profile=targets.profile("profile"))),
        ],
    )
    def test_difference(self, a, b):
        found, one, other = (attribute(network, target=target) for target in (targets.difference(a, b), a, b))
        for name in ("scores", "output", "output_reference"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(one, name) - getattr(other, name), 1e-9, 1e-12, err_msg=name
            )

    def test_difference_of_outputs(self):
        model = lambda x: network(x)["counts"]  # noqa: E731
        found = attribute(model, target=targets.difference(0, 1))
        same(found, attribute(model, target=np.array([1.0, -1.0])))

    @pytest.mark.parametrize(
        ("text", "head", "names"),
        [
            ("counts@counts, profile_held@profile", None, ("counts", "profile_held")),
            ("profile,profile_held@profile", "profile", ("profile", "profile_held")),
            ("profile@0/profile,profile@1/profile", None, ("profile@0/profile", "profile@1/profile")),
        ],
    )
    def test_from_text(self, text, head, names):
        model = (lambda x: [network(x), network(-x)]) if "/" in text else network
        target = targets.from_text(text, head)
        assert target.names == names
        found = attribute(model, target=target)
        for i, part in enumerate(text.split(",")):
            alone = attribute(model, target=targets.from_text(part.strip(), head))
            np.testing.assert_allclose(found.scores[:, i], alone.scores, 1e-9, 1e-12)

    def test_from_text_is_the_target_of_that_name(self):
        same(
            attribute(network, target=targets.from_text("profile_held", "profile")),
            attribute(network, target=targets.profile("profile", softmax="held")),
        )


def test_the_sum_is_the_difference():
    """In float32 and float64, of all targets at once, to their rounding."""
    together = targets.named(
        counts=targets.log_counts("counts"),
        held=targets.profile("profile", softmax="held"),
        explained=targets.profile("profile"),
        tracks=targets.profile("profile", softmax="held", axis=0),
        weighted=targets.weighted(SHIFTS, "profile", per_example=True),
        difference=targets.difference(targets.profile("profile", softmax="held"), targets.log_counts("counts")),
    )
    for dtype, rounding in ((np.float32, 3e-6), (np.float64, 1e-14)):
        with jax.enable_x64(dtype is np.float64):
            for rule in ("rescale", "revealcancel"):
                found = attribute(network, X.astype(dtype), REFERENCES.astype(dtype), target=together, rule=rule)
                assert found.scores.dtype == found.delta.dtype == dtype
                assert np.abs(found.output - found.output_reference).max() > 0.1
                np.testing.assert_allclose(
                    found.scores.sum((2, 3)), found.output - found.output_reference, rtol=0, atol=20 * rounding
                )
                np.testing.assert_allclose(found.delta, 0, atol=20 * rounding)


class TestMask:
    def plain(self, windows, intervals, length, bin, first):
        """Base by base."""
        rows = []
        for contig, start, end, strand in windows:
            inside = [
                any(where == contig and low <= base < high for where, low, high in intervals)
                for base in (range(start, end) if strand != "-" else range(end - 1, start - 1, -1))
            ]
            rows.append([np.mean(inside[first + j * bin : first + (j + 1) * bin]) for j in range(length)])
        return rows

    @pytest.mark.parametrize(("length", "bin", "offset"), [(30, 1, None), (8, 1, None), (5, 3, 4), (7, 4, None)])
    def test_by_hand(self, length, bin, offset):
        intervals = [("chr1", 103, 104), ("chr1", 110, 117), ("chr2", 20, 200), ("chr1", 0, 90), ("chr1", 125, 400)]
        windows = [("chr1", 100, 130, "+"), ("chr1", 100, 130, "-"), ("chr2", 10, 40, "."), ("chr1", 107, 137, "-")]
        columns = dict(zip(("contig", "start", "end", "strand"), zip(*windows, strict=True), strict=True))
        found = targets.mask(columns, intervals, length=length, bin=bin, offset=offset)
        first = (30 - length * bin) // 2 if offset is None else offset
        np.testing.assert_allclose(found, self.plain(windows, intervals, length, bin, first), 1e-6)
        own = [list(map(list, intervals))] * len(windows)
        np.testing.assert_array_equal(targets.mask(columns, own, length=length, bin=bin, offset=offset), found)
        del columns["strand"]
        forward = [(*window[:3], "+") for window in windows]
        found = targets.mask(columns, intervals, length=length, bin=bin, offset=offset)
        np.testing.assert_allclose(found, self.plain(forward, intervals, length, bin, first), 1e-6)

    def test_explains_what_it_covers(self):
        """A site of one base, in windows of both strands: what is explained is that base's letter."""
        columns = {"contig": ["c", "c"], "start": [10, 12], "end": [20, 22], "strand": ["+", "-"]}
        mask = targets.mask(columns, [("c", 14, 15)], length=10)
        x = np.arange(1.0, 81.0, dtype=np.float32).reshape(2, 10, 4)
        target = targets.weighted(mask, per_example=True)
        scores = jaxlift.attribute(lambda x: x.sum(2), target=target)(x, reference=jnp.zeros((10, 4)))
        expected = np.zeros_like(x)
        expected[0, 4], expected[1, 7] = x[0, 4], x[1, 7]  # 22 - 1 - 7 = 14
        np.testing.assert_array_equal(scores, expected)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"length": 0}, "length=0 must be an int, 1 at least"),
            ({"bin": 0}, "bin=0 must be an int, 1 at least"),
            ({"length": 21}, "21 positions of 1 bases don't fit a window of 20 with"),
            ({"length": 22}, "22 positions of 1 bases don't fit a window of 20."),
            ({"length": 9}, "with as many bases before them as after: say offset="),
            ({"length": 6, "bin": 3, "offset": 3}, "6 positions of 3 bases don't fit a window of 20 from offset=3"),
            ({"intervals": [("chr1", 40, 50)]}, "2 of 2 windows have no base .* window 0, 1"),
            ({"intervals": []}, "2 of 2 windows have no base"),
            ({"intervals": [[("c", 3, 4)]]}, "a list of intervals for each of 2 windows, got 1"),
            ({"intervals": [("c", 5, 5)]}, r"ends after its start, which is 0 or more: got \('c', 5, 5\)"),
            ({"intervals": [("c", 5, "x")]}, "an interval is .contig, start, end., got"),
            ({"windows": {"contig": ["c"], "start": [0]}}, "but have no end"),
            ({"windows": {"contig": ["c"], "start": [0, 1], "end": [20]}}, r"different lengths: \[1, 2, 1, 1\]"),
        ],
    )
    def test_errors(self, changes, message):
        windows = {"contig": ["c", "c"], "start": [0, 2], "end": [20, 22]}
        given = {"windows": windows, "intervals": [("c", 5, 10)], "length": 20} | changes
        with pytest.raises(ValueError, match=message):
            targets.mask(given.pop("windows"), given.pop("intervals"), **given)


FOLDS = [lambda x, scale=scale: network(x, scale * KERNEL) for scale in (0.5, -0.7)]


@pytest.mark.usefixtures("x64")
class TestEnsemble:
    """Against the mean of what each member is attributed, on each strand, with scores turned by hand."""

    def members(self, target, strands, rule="rescale", **options):
        found = [attribute(fold, target=target, rule=rule, **options) for fold in FOLDS]
        if strands == "both":
            for fold in FOLDS:
                one = attribute(fold, X[:, ::-1, ::-1], REFERENCES[:, ::-1, ::-1], target=target, rule=rule, **options)
                found.append(one._replace(scores=one.scores[..., ::-1, ::-1]))
        return jax.tree.map(lambda *leaves: np.mean(leaves, 0), *found)

    @pytest.mark.parametrize(
        ("strands", "rule"), [("forward", "rescale"), ("both", "rescale"), ("both", "revealcancel")]
    )
    @pytest.mark.parametrize("target", [targets.profile("profile"), TestTogether.both], ids=["explained", "held"])
    @pytest.mark.slow
    def test_is_the_mean_of_its_members(self, target, strands, rule):
        model = ensemble(FOLDS, strands=strands)
        found = attribute(model, target=model.mean(target), rule=rule)
        same(found, self.members(target, strands, rule), 1e-9)
        np.testing.assert_allclose(found.delta, 0, atol=1e-12)

    def test_positions(self):
        """Outputs of the reverse complement turned, so that a mask has its place: here too it is the mean of models."""
        target = targets.weighted(SHIFTS, "profile", per_example=True)
        model = ensemble(FOLDS, strands="both", turn=lambda y: {"profile": y["profile"][:, ::-1]})
        found = attribute(model, target=model.mean(target))

        def turned(fold):
            return lambda x: {"profile": fold(x[:, ::-1, ::-1])["profile"][:, ::-1]}

        each = [attribute(one, target=target) for fold in FOLDS for one in (fold, turned(fold))]
        same(found, jax.tree.map(lambda *leaves: np.mean(leaves, 0), *each), 1e-9)
        with pytest.raises(ValueError, match=r"run in the opposite direction: give ensemble\(\.\.\., turn=\)"):
            ensemble(FOLDS, strands="both").mean(target)
        with pytest.raises(ValueError, match="run in the opposite direction"):
            ensemble(FOLDS, strands="both").mean(targets.named(a=target))

    @pytest.mark.parametrize("target", [None, 1])
    def test_plain_targets(self, target):
        members = [
            lambda x, fold=fold: fold(x)["counts"][:, slice(1) if target is None else slice(2)] for fold in FOLDS
        ]
        model = ensemble(members)
        found = attribute(model, target=model.mean(target))
        each = [attribute(member, target=target) for member in members]
        same(found, jax.tree.map(lambda *leaves: np.mean(leaves, 0), *each), 1e-9)

    def test_one_model_on_both_strands(self):
        model = ensemble(FOLDS[0], strands="both")
        scores = attribute(model, target=model.mean(targets.log_counts("counts"))).scores
        opposite = attribute(
            model,
            X[:, ::-1, ::-1],
            REFERENCES[:, ::-1, ::-1],
            target=model.mean(targets.log_counts("counts")),
        ).scores
        np.testing.assert_allclose(opposite[:, ::-1, ::-1], scores, 1e-10, 1e-14)

    def test_letters_first(self):
        model = ensemble(lambda x: FOLDS[0](x.swapaxes(1, 2)), strands="both")
        target = model.mean(targets.log_counts("counts"))
        found = attribute(model, X.swapaxes(1, 2), REFERENCES.swapaxes(1, 2), target=target)
        model = ensemble(FOLDS[0], strands="both")
        expected = attribute(model, target=model.mean(targets.log_counts("counts")))
        np.testing.assert_allclose(found.scores.swapaxes(1, 2), expected.scores, 1e-12, 1e-14)

    def test_hypothetical(self):
        model = ensemble(FOLDS, strands="both")
        target = targets.profile("profile", softmax="held")
        found = attribute(model, target=model.mean(target), output="hypothetical")
        same(found, self.members(target, "both", output="hypothetical"), 1e-9)

    def test_one_pass_each(self):
        model = ensemble(FOLDS, strands="both")
        target = model.mean(targets.profile("profile", softmax="held"))
        attr = jaxlift.attribute(model, target=target)
        text = jax.jit(lambda x, r: attr(x, reference=r)).lower(X, REFERENCES).as_text()
        rows = [int(rows) for rows in re.findall(r"stablehlo\.convolution.* : \(tensor<(\d+)x", text)]
        assert sorted(rows) == sorted([N, R, N * R] * 2 * len(FOLDS))


def test_reverse_complement():
    """Of letters as text, with one that isn't known."""
    other = dict(zip("ACGTN", "TGCAN", strict=True))
    rng = np.random.default_rng(0)
    letters = rng.choice(list("ACGTN"), (4, 9))
    turned = np.array([[other[letter] for letter in row[::-1]] for row in letters])

    def one_hot(letters):
        return (letters[..., None] == np.array(list("ACGT"))).astype(np.float32)

    np.testing.assert_array_equal(reverse_complement(one_hot(letters)), one_hot(turned))
    np.testing.assert_array_equal(reverse_complement(one_hot(letters).swapaxes(1, 2)), one_hot(turned).swapaxes(1, 2))
