"""ROAD, against the linear system of its paper, made and solved equation by equation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlift import metrics

RNG = np.random.default_rng(23)
H, W, C = 5, 6, 2
X, SCORES = RNG.normal(size=(3, H, W, C)) + 3, RNG.normal(size=(3, H, W, 1))
WEIGHTS = RNG.normal(size=(H, W, C, 2))
KEY = jax.random.key(2)


def model(x):
    return jnp.tanh(jnp.einsum("nhwc,hwck->nk", x, WEIGHTS.astype(x.dtype)) / 10)


def in_numpy(x):
    return np.tanh(np.einsum("hwc,hwck->k", x, WEIGHTS) / 10)


def slowly_filled(image, gone):
    """Of pixels `(H, W, C)`: 1/6 of those at the sides and 1/12 of those at the corners, divided by what there is."""
    places = list(itertools.product(*map(range, gone.shape)))
    system, known = np.eye(len(places)), np.zeros((len(places), image.shape[-1]))
    for row, place in enumerate(places):
        if not gone[place]:
            known[row] = image[place]
            continue
        steps = [step for step in itertools.product((-1, 0, 1), repeat=gone.ndim) if any(step)]
        around = {tuple(np.add(place, step)): 1 / 6 if sum(map(abs, step)) == 1 else 1 / 12 for step in steps}
        around = {place: weight for place, weight in around.items() if place in places}
        for neighbour, weight in around.items():
            system[row, places.index(neighbour)] = -weight / sum(around.values())
    return np.linalg.solve(system, known).reshape(image.shape)


def slow_curve(image, scores, steps, f):
    order = sorted(range(scores.size), key=lambda i: -scores.ravel()[i])
    outputs = []
    for step in range(steps):
        gone = np.zeros(scores.size, bool)
        gone[order[: step * scores.size // steps]] = True
        outputs.append(f(slowly_filled(image, gone.reshape(scores.shape[:-1]))))
    return outputs


@pytest.mark.usefixtures("x64")
class TestRoad:
    def test_against_the_system(self):
        @jax.jit
        def curve(x, scores):
            return metrics.road(model, x, scores, key=KEY, steps=7, noise=0, target=1)

        found = curve(X, SCORES)
        assert found.shape == (3, 7)
        for i in range(3):
            expected = slow_curve(X[i], SCORES[i], 7, lambda image: in_numpy(image)[1])
            np.testing.assert_allclose(found[i], expected, rtol=1e-10)
        # Each example's system is solved for itself.
        alone = curve(np.stack([X[0], 1e9 * X[1], 0 * X[2]]), SCORES)
        np.testing.assert_allclose(alone[0], found[0], rtol=1e-12)
        spoilt = np.where(SCORES[1, 0, 0, 0] == SCORES, np.nan, SCORES)
        assert np.isnan(curve(X, spoilt)).all(1).tolist() == [False, True, False]

    def test_sequences_and_channels_first(self):
        """In one dimension the two neighbours count alike."""
        x, scores = X[:, 0], SCORES[:, 0]
        found = metrics.road(
            lambda x: (x**2).sum((1, 2)),
            np.swapaxes(x, 1, 2),
            np.swapaxes(scores, 1, 2),
            key=KEY,
            steps=3,
            noise=0,
            channel_axis=0,
        )
        for i in range(3):
            np.testing.assert_allclose(found[i], slow_curve(x[i], scores[i], 3, lambda x: (x**2).sum()), rtol=1e-10)

    def test_only_removed_pixels_are_noisy(self):
        """Each example's output is another number of its image, of which the first half remains."""
        n = 4800
        x = np.broadcast_to(np.array([7.0, -1]), (n, 3, 4, 2))
        scores = np.broadcast_to(np.arange(12.0).reshape(3, 4, 1), (n, 3, 4, 1))
        noise, which = np.array([0.5, 2.0]).reshape(1, 1, 1, 2), np.arange(n) % 24
        curve = metrics.road(
            lambda x: x.reshape(n, 24), x, scores, key=KEY, steps=2, noise=noise, target=which
        ).reshape(-1, 12, 2, 2)
        np.testing.assert_array_equal(curve[..., 0], x.reshape(-1, 12, 2)[: n // 24])
        np.testing.assert_array_equal(curve[:, :6, :, 1], curve[:, :6, :, 0])
        np.testing.assert_allclose(curve[:, 6:, :, 1].mean((0, 1)), [7, -1], atol=0.25)
        np.testing.assert_allclose(curve[:, 6:, :, 1].std((0, 1)), [0.5, 2], rtol=0.1)


def test_large_holes_in_float32():
    """Of a plane all that is known is a frame: the mean of neighbours keeps a plane."""
    plane = np.add.outer(np.arange(64.0), 3 * np.arange(64.0)).astype(np.float32)
    scores = np.pad(np.ones((62, 62), np.float32), 1)
    curve = metrics.road(
        lambda x: jnp.abs(x[..., 0] - plane[None]).max((1, 2)),
        plane[None, :, :, None],
        scores[None, :, :, None],
        key=KEY,
        steps=16,  # after 15 of them 3840 pixels are gone, all but 4 of the inner 3844
        noise=0,
    )
    assert curve.max() < 2e-5 * plane.max()


def road(x=X, scores=SCORES, **options):
    return metrics.road(model, x, scores, **{"key": KEY, "steps": 3, "target": 1, **options})


CASES = {
    "channels": (lambda: road(scores=X), ValueError, r"\(3, 5, 6, 1\), got \(3, 5, 6, 2\).*sum\(3, keepdims=True\)"),
    "steps": (lambda: road(steps=31), ValueError, r"steps=31 must be between 1 and .* 30"),
    "noise": (lambda: road(noise=-1), ValueError, r"noise=-1 must be 0 or positive"),
    "integers": (lambda: road(X.astype(int)), TypeError, r"dtype int32.*floating-point"),
    "key": (lambda: road(key=0), TypeError, r"expected a PRNG key"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
