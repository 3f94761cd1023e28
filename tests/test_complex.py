"""Complex numbers: what is made of real values, what is real of them, and all that comes between.

The contributions of a complex function are those of its real part and of its imaginary part. They are compared with the
same function written with pairs of real numbers where both programs are the same sums and products, and elsewhere with
what they must sum to: entry by entry, for functions of one entry.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift

RULES = ("rescale", "revealcancel")
X, R = [0.9, -0.4, 1.3, 0.2], [-0.2, 0.5, 0.1, 1.1]
WEIGHTS = np.random.default_rng(0).normal(size=(2, 4))


def curve(a):
    """The parts of a number on a curve in the plane: both are activations."""
    return 1.5 + jnp.tanh(a), jnp.sin(2 * a)


def parts(z):
    return jnp.real(z), jnp.imag(z)


@functools.partial(jax.jit, static_argnums=(0, 3))
def explained(f, x, r, rules):
    """The contributions to the sum of each of two parts, by each rule, and the parts themselves of input and reference.

    Entries are weighed, so that cotangents differ.
    """

    def sums(x):
        return jnp.stack([(w * part).sum() for w, part in zip(WEIGHTS.astype(x.dtype), f(x), strict=True)])

    def contributions(rule):
        _, pullback = jaxlift.vjp(sums, x, r, rule=rule)
        return jax.vmap(lambda ct: pullback(ct) * (x - r))(jnp.eye(2, dtype=x.dtype))

    return {rule: contributions(rule) for rule in rules}, jnp.stack(f(x)), jnp.stack(f(r))


def product(z, w):
    (u, v), (p, q) = z, w
    return u * p - v * q, u * q + v * p


def quotient(z, w):
    (u, v), (p, q) = z, w
    size = p * p + q * q
    return (u * p + v * q) / size, (v * p - u * q) / size


def root(u, v):
    """Of a number with a positive real part."""
    size = jnp.sqrt(u * u + v * v)
    return jnp.sqrt((size + u) / 2), v / jnp.sqrt(2 * (size + u))


def tangent(u, v):
    size = jnp.cosh(2 * u) + jnp.cos(2 * v)
    return jnp.sinh(2 * u) / size, jnp.sin(2 * v) / size


def logistic(u, v):
    size = jnp.exp(-u)
    return quotient((1.0, 0.0), (1 + size * jnp.cos(v), -size * jnp.sin(v)))


# A function of a complex number, and the same of a pair of real ones.
FUNCTIONS = {
    "identity": (lambda z: z, lambda u, v: (u, v)),
    "neg": (lambda z: -z, lambda u, v: (-u, -v)),
    "conj": (jnp.conj, lambda u, v: (u, -v)),
    "real": (lambda z: z.real, lambda u, v: (u, 0 * v)),
    "imag": (lambda z: z.imag, lambda u, v: (v, 0 * v)),
    "turned": (lambda z: (0.5 - 2j) * z + 1j, lambda u, v: (0.5 * u + 2 * v, 0.5 * v - 2 * u + 1)),
    "over a number": (lambda z: z / (2.5 + 1j), lambda u, v: quotient((u, v), (2.5, 1.0))),
    "under a number": (lambda z: (2.5 + 1j) / z, lambda u, v: quotient((2.5, 1.0), (u, v))),
    "reciprocal": (lambda z: 1 / z, lambda u, v: quotient((1.0, 0.0), (u, v))),
    "square": (jnp.square, lambda u, v: product((u, v), (u, v))),
    "cube": (lambda z: z**3, lambda u, v: product((u, v), product((u, v), (u, v)))),
    "inverse square": (lambda z: z**-2, lambda u, v: quotient((1.0, 0.0), product((u, v), (u, v)))),
    "power": (lambda z: z ** (0.5 + 1j), None),
    "exponential of another base": (lambda z: (2 + 0.5j) ** z, None),
    "modulus": (jnp.abs, lambda u, v: (jnp.sqrt(u * u + v * v), 0 * v)),
    "squared modulus": (lambda z: jnp.abs(z) ** 2, lambda u, v: (u * u + v * v, 0 * v)),
    "product with the conjugate": (lambda z: z * z.conj(), lambda u, v: (u * u + v * v, 0 * v)),
    "angle": (jnp.angle, lambda u, v: (jnp.arctan2(v, u), 0 * v)),
    "sign": (jnp.sign, lambda u, v: (u / jnp.sqrt(u * u + v * v), v / jnp.sqrt(u * u + v * v))),
    "exp": (jnp.exp, lambda u, v: (jnp.exp(u) * jnp.cos(v), jnp.exp(u) * jnp.sin(v))),
    "exp2": (jnp.exp2, None),
    "expm1": (jnp.expm1, lambda u, v: (jnp.exp(u) * jnp.cos(v) - 1, jnp.exp(u) * jnp.sin(v))),
    "log": (jnp.log, lambda u, v: (jnp.log(u * u + v * v) / 2, jnp.arctan2(v, u))),
    "log1p": (jnp.log1p, lambda u, v: (jnp.log((1 + u) ** 2 + v * v) / 2, jnp.arctan2(v, 1 + u))),
    "sqrt": (jnp.sqrt, root),
    "rsqrt": (lax.rsqrt, lambda u, v: quotient((1.0, 0.0), root(u, v))),
    "sin": (jnp.sin, lambda u, v: (jnp.sin(u) * jnp.cosh(v), jnp.cos(u) * jnp.sinh(v))),
    "cos": (jnp.cos, lambda u, v: (jnp.cos(u) * jnp.cosh(v), -jnp.sin(u) * jnp.sinh(v))),
    "tan": (jnp.tan, None),
    "sinh": (jnp.sinh, lambda u, v: (jnp.sinh(u) * jnp.cos(v), jnp.cosh(u) * jnp.sin(v))),
    "cosh": (jnp.cosh, lambda u, v: (jnp.cosh(u) * jnp.cos(v), jnp.sinh(u) * jnp.sin(v))),
    "tanh": (jnp.tanh, tangent),
    "logistic": (jax.nn.sigmoid, logistic),
    "asin": (jnp.arcsin, None),
    "acos": (jnp.arccos, None),
    "atan": (jnp.arctan, None),
    "asinh": (jnp.arcsinh, None),
    "acosh": (jnp.arccosh, None),
    "atanh": (jnp.arctanh, None),
    "swish": (lambda z: z * jax.nn.sigmoid(z), None),
    "times the modulus": (lambda z: z * jnp.abs(z), None),
    "modReLU": (lambda z: jax.nn.relu(jnp.abs(z) - 1) * z / jnp.abs(z), None),
    "cardioid": (lambda z: (1 + jnp.cos(jnp.angle(z))) / 2 * z, None),
    "CReLU": (
        lambda z: lax.complex(jax.nn.relu(z.real - 1), jax.nn.relu(z.imag)),
        lambda u, v: (jax.nn.relu(u - 1), jax.nn.relu(v)),
    ),
    "kept where it is large": (
        lambda z: jnp.where(jnp.abs(z) > 1.6, z, 0),
        lambda u, v: [jnp.where(u * u + v * v > 1.6**2, part, 0) for part in (u, v)],
    ),
    "choice of numbers": (
        lambda z: jnp.where(z.real > 1.6, 1j, 2 + 3j),
        lambda u, v: [jnp.where(u > 1.6, *numbers) for numbers in ((0.0, 2.0), (1.0, 3.0))],
    ),
    "fewer digits": (lambda z: z.astype(jnp.complex64).astype(z.dtype), None),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [pytest.param(f, marks=[pytest.mark.slow] * (i % 2)) for i, f in enumerate(FUNCTIONS)])
@pytest.mark.sample(10)
def test_of_one_entry(name):
    """Every entry contributes what its own change does, in complex numbers as in pairs of real ones."""
    f, pair = FUNCTIONS[name]
    programs = [(lambda a: parts(f(curve(a)[0] + 1j * curve(a)[1])), RULES)]
    programs += [(lambda a: pair(*curve(a)), ("rescale",))] if pair else []
    tolerance = 1e-6 if name == "fewer digits" else 1e-13
    for program, rules in programs:
        by_rule, value, reference = explained(program, jnp.array(X), jnp.array(R), rules)
        for rule, contributions in by_rule.items():
            change = WEIGHTS * (value - reference)
            np.testing.assert_allclose(contributions, change, rtol=tolerance, atol=tolerance, err_msg=rule)


def halves(x):
    """Two values on the curve, of the entries of each half of an array."""
    (u, v), (p, q) = (curve(half) for half in jnp.split(x, 2))
    return (u, v), (1.0 + p, v * q)


A, B = np.random.default_rng(1).normal(size=(2, 4, 4))
TURNS = 2 * np.pi * np.outer(np.arange(4), np.arange(4)) / 4
CIRCLE = (np.arange(4)[:, None] - np.arange(4)) % 4  # what w[n - k] is in a convolution around a circle


def matrices(z, w, shape=(2, 2)):
    """The product of two complex matrices, of the real ones that they are made of."""
    (u, v), (p, q) = ([part.reshape(shape) for part in pair] for pair in (z, w))
    return (u @ p - v @ q).ravel(), (u @ q + v @ p).ravel()


# Sums and products of two complex numbers, and the same of two pairs of real ones.
SUMS_AND_PRODUCTS = {
    "sum": (lambda z, w: z - 2j * w, lambda z, w: (z[0] + 2 * w[1], z[1] - 2 * w[0])),
    "product": (lambda z, w: z * w, product),
    "product with a conjugate": (lambda z, w: z * w.conj(), lambda z, w: product(z, (w[0], -w[1]))),
    "over a number": (lambda z, w: z * w / (2 + 1j), lambda z, w: quotient(product(z, w), (2.0, 1.0))),
    "gate": (lambda z, w: z * jax.nn.sigmoid(w.real), lambda z, w: [jax.nn.sigmoid(w[0]) * part for part in z]),
    "choice": (
        lambda z, w: jnp.where(z.real > 1.6, w, z),
        lambda z, w: [jnp.where(z[0] > 1.6, q, p) for p, q in zip(z, w, strict=True)],
    ),
    "choice of numbers": (
        lambda z, w: jnp.where(z.real > 1.6, 1j, w),
        lambda z, w: [jnp.where(z[0] > 1.6, p, q) for p, q in zip((0.0, 1.0), w, strict=True)],
    ),
    "truth value": (lambda z, w: (z.real > 1.6) * w, lambda z, w: [(z[0] > 1.6) * part for part in w]),
    "dense": (
        lambda z, w: (A + 1j * B) @ (z * w),
        lambda z, w: (lambda u, v: (A @ u - B @ v, A @ v + B @ u))(*product(z, w)),
    ),
    "matrix product": (lambda z, w: (z.reshape(2, 2) @ w.reshape(2, 2)).ravel(), matrices),
    "Fourier transform": (
        lambda z, w: jnp.fft.fft(z * w),
        lambda z, w: (lambda u, v: (jnp.cos(TURNS) @ u + jnp.sin(TURNS) @ v, jnp.cos(TURNS) @ v - jnp.sin(TURNS) @ u))(
            *product(z, w)
        ),
    ),
    "convolution": (
        lambda z, w: jnp.fft.ifft(jnp.fft.fft(z) * jnp.fft.fft(w)),
        lambda z, w: (w[0][CIRCLE] @ z[0] - w[1][CIRCLE] @ z[1], w[0][CIRCLE] @ z[1] + w[1][CIRCLE] @ z[0]),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SUMS_AND_PRODUCTS)
def test_sums_and_products_are_those_of_pairs(name):
    """Where both programs are the same sums and products, they have the same contributions."""
    f, pair = SUMS_AND_PRODUCTS[name]
    x, r = np.random.default_rng(2).normal(size=(2, 8))

    def complex_numbers(x):
        (u, v), (p, q) = halves(x)
        return parts(f(u + 1j * v, lax.complex(p, q)))

    actual, *sides = explained(complex_numbers, x, r, RULES)
    expected, *sides_of_pairs = explained(lambda x: pair(*halves(x)), x, r, RULES)
    np.testing.assert_allclose(sides, sides_of_pairs, rtol=1e-12)
    for rule in RULES:
        np.testing.assert_allclose(actual[rule], expected[rule], rtol=1e-12, atol=1e-12, err_msg=rule)


def of_halves(f):
    """A function of a complex number as one of its two independent parts, which are activations."""
    return lambda x: parts(f(halves(x)[0][0] + 1j * halves(x)[1][1]))


T = jnp.tanh


@jax.custom_jvp
def made_complex(a):
    """A function from real to complex numbers with a derivative of its own."""
    return a + 1j * jnp.tanh(a)


made_complex.defjvp(lambda p, t: (made_complex(*p), t[0] * (1 + 1j * (1 - jnp.tanh(*p) ** 2))))

# Complex numbers that are made of one real value, in several places, and of two.
MADE = {
    "a + i tanh": lambda a, b: a + 1j * T(a),
    "tanh + i a": lambda a, b: T(a) + 1j * a,
    "exp(i tanh)": lambda a, b: jnp.exp(1j * T(a)),
    "tanh exp(i a)": lambda a, b: T(a) * jnp.exp(1j * a),
    "a exp(i tanh)": lambda a, b: a * jnp.exp(1j * T(a)),
    "a tanh": lambda a, b: (1 + 1j) * a * T(a),
    "square of a line": lambda a, b: (a + 2j * a) ** 2,
    "exp(i a) over a parabola": lambda a, b: jnp.exp(1j * a) / (2 + a * a),
    "relu exp(i a)": lambda a, b: jnp.exp(1j * a) * jax.nn.relu(a),
    "exp(i a) over a complex number": lambda a, b: jnp.exp(1j * a) / (2 + 1j + T(a)),
    "quotient of one": lambda a, b: (a + 1j * a) / (2.5 + 1j + T(a)),
    "quotient of two": lambda a, b: (a + 1j * b) / (2.5 + 1j + T(b)),
    "modulus of a curve": lambda a, b: jnp.abs(T(a) + 1j * a),
    "angle of exp(i tanh)": lambda a, b: jnp.angle(jnp.exp(1j * T(a))),
    "angle of one": lambda a, b: jnp.angle(2.2 + T(a) + 1j * a),
    "angle of two": lambda a, b: jnp.angle(2.2 + T(a) + 1j * b),
    "angle between": lambda a, b: jnp.angle((a + 2j) * jnp.conj(b + 3j * T(a))),
    "power of both": lambda a, b: (2 + 1j * a) ** (b + 1j * T(a)),
    "product with a function of it": lambda a, b: (a + 1j * T(b)) * jnp.abs(a + 1j * T(b)),
    "softmax with phases": lambda a, b: jax.nn.softmax(a) * jnp.exp(1j * T(b)),
    "choice of two": lambda a, b: jnp.where(T(a) > 0, jnp.exp(1j * b), 2 + a),
    "powers by integers": lambda a, b: (1.5 + 1j) ** jnp.floor(2 * a).astype(int) * T(b),
    "jit": lambda a, b: jax.jit(lambda a: jnp.exp(1j * T(a)))(a),
    "checkpoint": lambda a, b: jax.checkpoint(lambda a: jnp.exp(1j * T(a)) * b)(a),
    "custom derivative": lambda a, b: made_complex(T(a)) * b,
    "cond": lambda a, b: lax.cond(a[0] > 0, lambda a: a + 1j * T(a), lambda a: 1j * a * a, a),
    "loop": lambda a, b: lax.scan(lambda c, u: (c * jnp.exp(1j * u) + T(u), c * u), jnp.zeros_like(1j * a[0]), b)[1],
    "loop over what is complex": lambda a, b: lax.fori_loop(0, 3, lambda _, c: c * c / 3 + b, jnp.fft.fft(T(a))),
}
SPECTRA = {
    "amplitude": lambda a, b: jnp.abs(jnp.fft.rfft(a, 6)),
    "phase": lambda a, b: jnp.angle(3 + jnp.fft.rfft(T(a), 6)),
    "power": lambda a, b: jnp.abs(jnp.fft.rfft(T(a), 6)) ** 2,
    "power of parts": lambda a, b: jnp.square(jnp.fft.rfft(a * b, 6).real) + jnp.square(jnp.fft.rfft(a * b, 6).imag),
    "decibel": lambda a, b: jnp.log10(jnp.abs(jnp.fft.rfft(T(a), 6)) ** 2 + 1e-3),
    "cepstrum": lambda a, b: jnp.fft.irfft(jnp.log(jnp.abs(jnp.fft.rfft(jax.nn.relu(a) + b, 6)) + 0.1), 4),
    "correlation": lambda a, b: jnp.fft.irfft(jnp.fft.rfft(T(a)) * jnp.fft.rfft(b).conj(), 4),
    "correlation of phases": lambda a, b: (lambda z: jnp.fft.ifft(z / (jnp.abs(z) + 0.1)))(jnp.fft.fft(a + 1j * T(b))),
    "analytic signal": lambda a, b: jnp.abs(jnp.fft.ifft(jnp.fft.fft(T(a)) * jnp.array([1, 2, 1, 0], a.dtype))),
    "filter": lambda a, b: jnp.fft.irfft(jnp.fft.rfft(T(a)) * jnp.exp(1j * b[:3]), 4),
    "two dimensions": lambda a, b: jnp.abs(jnp.fft.fft2(jnp.outer(T(a), b)))[1],
    "gated": lambda a, b: jax.nn.relu(jnp.abs(jnp.fft.rfft(T(a), 6)) - 1) * jax.nn.sigmoid(b),
}
PROGRAMS = {name: of_halves(f) for name, (f, _) in FUNCTIONS.items()} | {
    name: lambda x, f=f: parts(f(*jnp.split(x, 2))) for name, f in (MADE | SPECTRA).items()
}


def assert_sums_hold(by_rule, value, reference, units):
    change = (WEIGHTS * (value - reference)).sum(1)
    for rule, contributions in by_rule.items():
        scale = np.abs(contributions).sum(1) + np.abs(WEIGHTS * value).sum(1) + np.abs(WEIGHTS * reference).sum(1)
        assert (np.abs(contributions.sum(1) - change) <= units * scale).all(), (rule, contributions.sum(1), change)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.sample(16)
def test_sums_hold(name):
    x, r = np.random.default_rng(3).normal(size=(2, 8))
    r[2] = x[2]
    assert_sums_hold(*jax.device_get(explained(PROGRAMS[name], x, r, RULES)), 1e-6 if name == "fewer digits" else 1e-13)


@pytest.mark.parametrize(
    "name",
    # Functions of one number differ in their dtype alone from what is tested above.
    [pytest.param(name, marks=[pytest.mark.slow] * (name in FUNCTIONS or i % 2)) for i, name in enumerate(PROGRAMS)],
)
@pytest.mark.sample(8)
def test_sums_hold_in_float32(name):
    x, r = np.random.default_rng(3).normal(size=(2, 8)).astype(np.float32)
    assert_sums_hold(*jax.device_get(explained(PROGRAMS[name], x, r, RULES)), 2e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    # The complex sign turns and doesn't stretch: no one complex multiplier is its derivative. (JAX 0.10 takes 0.)
    [pytest.param(n, marks=[pytest.mark.slow] * (i % 3 > 0)) for i, n in enumerate(PROGRAMS) if n != "sign"],
)
@pytest.mark.sample(10)
def test_derivatives(name):
    """They are the multipliers where input and reference are the same; and the gradient rule's, to the last bit."""
    x = np.random.default_rng(3).normal(size=8)

    @jax.jit
    def multipliers(x):
        def total(x):
            return sum((w * part).sum() for w, part in zip(WEIGHTS, PROGRAMS[name](x), strict=True))

        by_rule = {rule: jaxlift.vjp(total, x, x, rule=rule)[1](1.0) for rule in (*RULES, "gradient")}
        return by_rule, jax.vjp(total, x)[1](1.0)[0]

    by_rule, derivative = multipliers(x)
    np.testing.assert_array_equal(by_rule["gradient"], derivative)
    for rule in RULES:
        tolerance = 1e-6 if name == "fewer digits" else 1e-9
        np.testing.assert_allclose(by_rule[rule], derivative, rtol=tolerance, atol=tolerance, err_msg=rule)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["exp(i tanh)", "cepstrum", "quotient of two"])
def test_batches(name):
    """Of inputs and of references, jitted or not, each pair is as it is by itself."""
    f = PROGRAMS[name]
    x, r = np.random.default_rng(4).normal(size=(2, 3, 8))

    def contributions(x, r):
        return explained(f, x, r, RULES)[0]

    of_pairs = jax.vmap(jax.vmap(contributions, (None, 0)), (0, None))
    for batched in (of_pairs, jax.jit(of_pairs)):
        actual = batched(x, r)
        for i, j in np.ndindex(3, 3):
            for rule, expected in contributions(x[i], r[j]).items():
                np.testing.assert_allclose(actual[rule][i, j], expected, rtol=1e-11, atol=1e-12)


# What a step of a drawn program does with two of the complex and two of the real values so far.
TO_COMPLEX = (
    lambda z, w, a, b: z * w,
    lambda z, w, a, b: z - 2j * w,
    lambda z, w, a, b: z / (w + 3j),
    lambda z, w, a, b: w / (2 + b * b),
    lambda z, w, a, b: a * z,
    lambda z, w, a, b: a + 1j * jnp.tanh(a),
    lambda z, w, a, b: lax.complex(a, jax.nn.relu(b)),
    lambda z, w, a, b: jnp.exp(1j * a) * jnp.tanh(a),
    lambda z, w, a, b: jnp.where(a > 0, z, w.conj()),
    lambda z, w, a, b: jnp.where(b > 0, 1j, 2.0) * z,
    lambda z, w, a, b: jnp.fft.fft(z) / 4,
    lambda z, w, a, b: z / (1 + jnp.abs(z)),
    lambda z, w, a, b: jnp.exp(z / (1 + jnp.abs(z))),
    lambda z, w, a, b: jnp.tanh(0.3 * z) + w,
    lambda z, w, a, b: jnp.sqrt(z + 2) * (w + 1),
    lambda z, w, a, b: jnp.log(w + 3) ** 2,
    lambda z, w, a, b: jnp.cumsum(z[::-1]) / 4,
)
TO_REAL = (
    lambda z, w, a, b: z.real,
    lambda z, w, a, b: w.imag,
    lambda z, w, a, b: jnp.abs(z),
    lambda z, w, a, b: jnp.angle(w + 3),
    lambda z, w, a, b: jnp.abs(z) ** 2 / (1 + jnp.abs(w) ** 2),
    lambda z, w, a, b: jnp.tanh(a),
    lambda z, w, a, b: jax.nn.relu(a) * b,
    lambda z, w, a, b: jax.nn.sigmoid(z.imag) * a,
)


def drawn(seed):
    """A program of ten steps."""
    rng = np.random.default_rng(seed)
    steps = [(rng.integers(25), *rng.random(4)) for _ in range(10)]

    def program(x):
        u, v = jnp.split(x, 2)
        complex_values, real_values = [u + 1j * v, jnp.exp(1j * v)], [u, v]
        for operation, *which in steps:
            lists = (complex_values, complex_values, real_values, real_values)
            operands = [values[int(len(values) * at)] for values, at in zip(lists, which, strict=True)]
            y = (*TO_COMPLEX, *TO_REAL)[operation](*operands)
            (complex_values if jnp.iscomplexobj(y) else real_values).append(y)
        return parts(sum(complex_values[2:], 0j) + 1j * sum(real_values[2:]))

    return program


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= 2)) for seed in range(40)])
@pytest.mark.sample(8)
def test_drawn_programs(seed):
    x, r = np.random.default_rng(seed).normal(size=(2, 8))
    assert_sums_hold(*jax.device_get(explained(drawn(seed), x, r, RULES)), 1e-12)
