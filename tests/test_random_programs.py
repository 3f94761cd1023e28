"""What holds for every program, on programs that nobody wrote: Hypothesis draws them from all families of operations.

A program is a tuple of steps `(operation, operands, parameters)`. Operands are numbers of earlier values, 0 being the
program's argument, so a program is a graph and values are used again; parameters are small integers, and whole programs
for the bodies of calls and loops. Operations take arrays of any shape, and whatever is drawn is a program: Hypothesis
shrinks a failure to the fewest and simplest steps, and prints it as it is written here.

A few run by default and some more with the slow tests, always the same ones. `JAXLIFT_PROGRAMS=10000` runs so many of
each test, drawn anew (`--hypothesis-seed` repeats them):

    JAXLIFT_PROGRAMS=10000 python -m pytest tests/test_random_programs.py -m 'slow or not slow'
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from programs import cut_cotangent, doubled_slope

import jaxlift

SIZE = 12  # of the largest array
NWC = ("NWC", "WIO", "NWC")


class Bounded(NamedTuple):
    """A value of a program, and a number that no entry exceeds in size."""

    array: Any
    bound: float


class Operation(NamedTuple):
    """What a step does.

    Attributes:
        fun: takes arrays and two small integers. With bodies: arrays, the integers, and functions in place of bodies.
        operands: how many arrays it takes.
        limit: the largest entries it takes. Larger ones are brought in range first, so that values neither overflow nor
            drown each other in rounding, program after program.
        bound: the size of the results, of that of the operands.
        kind: "linear" (or affine), "smooth" (has the derivative that JAX takes as its limit), "step" (that isn't its
            limit everywhere).
        bodies: how many programs it takes.
    """

    fun: Callable[..., Any]
    operands: int = 1
    limit: float = 1e5
    bound: Callable[[float], float] = lambda b: b
    kind: str = "smooth"
    bodies: int = 0


@functools.cache
def weights(seed, *shape):
    """Numbers that a program closes over; along the first axis their sizes sum to 1, so that products don't grow."""
    w = np.random.default_rng((seed, *shape)).normal(size=shape)
    return w / np.abs(w).sum(0)


def vec(h):
    return h.reshape(-1)


def mat(h):
    """Rows and columns of an array of any shape."""
    if h.ndim > 1:
        return h.reshape(-1, h.shape[-1])
    return h.reshape(next(n for n in (3, 2, 1) if h.size % n == 0), -1)


def fit(h, shape, how=0):
    """`h`, repeated or cut to a shape or to one that is broadcast to it: along the last axis, the first, or all."""
    return jnp.resize(h, (shape, (*shape[:-1], 1), (1, *shape[1:]), ())[how])


def conv(h, a, b):
    h = mat(h)
    k = weights(a, 2 * h.shape[1], 2).reshape(2, h.shape[1], 2)
    options = ({}, {"rhs_dilation": (2,)}, {"lhs_dilation": (2,), "padding": ((1, 1),)}, {"window_strides": (2,)})[b]
    return lax.conv_general_dilated(
        h[None], k, **{"window_strides": (1,), "padding": "SAME"} | options, dimension_numbers=NWC
    )[0]


def windows(h, a, b, reducer, init):
    """Pooling over windows, apart (0) or overlapping, cut off or padded."""
    h = mat(h)
    size = tuple(min(2, n) for n in h.shape)
    strides = (size, (1, 1), (1, size[1]), (2, 1))[a]
    return lax.reduce_window(h, init, reducer, size, strides, "SAME" if b % 2 else "VALID")


def along(h, a):
    """An axis of an array of at least one."""
    h = jnp.atleast_1d(h)
    return h, a % h.ndim


def reduction(reducer):
    def fun(h, a, b):
        h, axis = along(h, a)
        return reducer(h, axis=None if b == 0 else axis, keepdims=b == 2)

    return fun


def at_axis(function):
    def fun(h, a, b):
        h, axis = along(h, a)
        return function(h, axis)

    return fun


def pointwise(function):
    return lambda h, a, b: function(h)


def of_two(function):
    """An elementwise function of one value and of another that is broadcast to it, on the left or on the right."""

    def fun(h, u, a, b):
        u = fit(u, h.shape, a)
        return function(u, h) if b % 2 else function(h, u)

    return fun


def prelu(h, a, b):
    return jnp.where(h >= 0, h, h * weights(a, *h.shape))


def softmax_by_hand(h, axis):
    e = jnp.exp(h - h.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def masked_softmax(h, axis):
    return jax.nn.softmax(jnp.where(jnp.arange(h.size).reshape(h.shape) % 3 == 1, -jnp.inf, h).at[0].set(h[0]), axis)


def layer_norm(h, axis):
    return (h - h.mean(axis, keepdims=True)) * lax.rsqrt(h.var(axis, keepdims=True) + 1e-3)


def attention(h, u, a, b):
    h, u = mat(h), fit(u, mat(h).shape)
    return jax.nn.softmax(h @ u.T / 2, -1) @ (u if b % 2 else h)


def positive_definite(h):
    h = mat(h)[:3, :3]
    return h @ h.T + 2 * jnp.eye(len(h))


def solve(h, u, a, b):
    m = positive_definite(h)
    v = fit(u, m.shape[:1])
    if a == 0:
        return jnp.linalg.solve(m, v)
    if a == 1:
        return jsp.linalg.cho_solve(jsp.linalg.cho_factor(m), v)
    return jsp.linalg.solve_triangular(m, v, lower=b % 2 == 0, trans=b // 2)


def index_by_choice(h, u, a, b):
    """Elements that another value's largest, smallest or ordered elements point to."""
    h, u = vec(h), fit(u, (h.size,))
    place = (jnp.argmax(u), jnp.argmin(u), jnp.argsort(u), jnp.clip(jnp.abs(u).astype(int), 0, h.size - 1))[a]
    return h[place] * (1 if b % 2 else jnp.asarray(weights(b, h.size))[place])


def chosen_slice(h, u, a, b):
    h = vec(h)
    return lax.dynamic_slice(h, (jnp.argmax(vec(u)),), (max(1, h.size - 1 - a),))


def scan(h, c, a, b, body):
    rows = mat(h)
    options = {"reverse": b % 2 == 1}
    last, ys = lax.scan(lambda carry, row: _twice(body(carry, row, c)), jnp.zeros(3) + a, rows, **options)
    return last if b < 2 else ys


def _twice(carry):
    return carry, carry * 2


def call_twice(h, u, a, b, body):
    call, h = jax.jit(body), fit(h, (3,))
    return call(call(h, u), u) if a % 2 else call(h, u) - call(h + b, u)


def fori_loop(h, c, a, b, body):
    return lax.fori_loop(0, 1 + a, lambda i, carry: body(carry, h + i, c), jnp.ones(3))


def cond(h, u, a, b, body, other):
    u = vec(u)
    if a == 0:
        return lax.cond(b > 1, body, other, h, u)
    if a == 1:
        return lax.switch(jnp.argmax(u), [body, other, lambda h, u: body(u, h)], h, u)
    return lax.cond(u.sum() > 0, body, other, h, u)


def split(h, a, b):
    h = jnp.split(mat(h), [1])
    return jnp.concatenate([h[1], h[0] * 2]) if a % 2 else jnp.stack([h[0], h[0] - 1])


def scatter(h, u, a, b):
    h, places = vec(h), np.arange(a + 1) * 2 % h.size
    u = fit(u, places.shape)
    if b == 0:
        return h.at[places].add(u)
    if b == 1:
        return h.at[places[0]].set(u[0])
    return h.at[places].max(u) if b == 2 else h.at[places].min(u)


def linear(fun, operands=1, growth=1.0):
    return Operation(fun, operands, bound=lambda b: b * growth + 1, kind="linear")


def activation(fun, limit=1e5, growth=2.0, kind="smooth"):
    return Operation(pointwise(fun), limit=limit, bound=lambda b: growth * b + 5, kind=kind)


OPERATIONS = {
    # Linear and structural.
    "scale": linear(lambda h, a, b: h * (0.5, -1.5, 2.0, -0.3)[a] + b, growth=2),
    "affine": linear(lambda h, a, b: (3 - h / weights(a, *h.shape).clip(0.5)) / 4),
    "dense": linear(lambda h, a, b: jnp.atleast_1d(h) @ weights(b, h.shape[-1] if h.ndim else 1, 1 + a)),
    "dense from the left": linear(lambda h, a, b: weights(b, len(mat(h)), 1 + a).T @ mat(h)),
    "conv": linear(conv),
    "reshape": linear(lambda h, a, b: (vec(h), mat(h), vec(h)[:, None], mat(h)[None])[a]),
    "transpose": linear(lambda h, a, b: h.T if a % 2 else mat(h).T),
    "reverse": linear(lambda h, a, b: jnp.roll(vec(h)[::-1], a)),
    "slice": linear(lambda h, a, b: vec(h)[a % h.size :: 1 + b]),
    "pad": linear(lambda h, a, b: lax.pad(vec(h), jnp.asarray(1.0, h.dtype), [(a, b - 1 if h.size > 1 else b, a % 2)])),
    "split": linear(split, growth=2),
    "concatenate": linear(lambda h, u, a, b: jnp.concatenate([vec(h)[:6], np.ones(a % 2), vec(u)[:6]]), 2),
    "stack": linear(lambda h, u, a, b: jnp.stack([h, fit(u, h.shape)], axis=-1 if a % 2 else 0), 2),
    "gather": linear(lambda h, a, b: vec(h)[np.array([0, 3, 3, 1][: a + 1]) % h.size]),
    "one slice in another": linear(
        lambda h, u, a, b: lax.dynamic_update_slice(vec(h), vec(u)[: min(2, h.size)], (a % h.size,)), 2
    ),
    "cumsum": linear(lambda h, a, b: lax.cumsum(vec(h), reverse=a % 2 == 1), growth=SIZE),
    "sum": linear(reduction(jnp.sum), growth=SIZE),
    "mean": linear(reduction(jnp.mean)),
    "average pool": linear(lambda h, a, b: windows(h, a, b, lax.add, 0.0), growth=4),
    "mask": linear(lambda h, u, a, b: jnp.where(weights(a, *h.shape) > 0, h, fit(u, h.shape)), 2),
    "add": linear(of_two(jnp.add), 2, 2),
    "sub": linear(of_two(jnp.subtract), 2, 2),
    "residual": linear(lambda h, u, a, b: h + fit(vec(u) @ weights(a, u.size, 4), h.shape), 2, 2),
    "einsum": linear(
        lambda h, u, a, b: jnp.einsum("ij,jk->ki", mat(h), weights(a, mat(h).shape[1], 2)) + vec(u)[0], 2, 2
    ),
    "rfft": linear(lambda h, a, b: jnp.fft.rfft(vec(h)).real if a % 2 else jnp.fft.rfft(vec(h)).imag, growth=SIZE),
    "solve, constant matrix": linear(
        lambda h, a, b: jnp.linalg.solve(weights(a, h.size, h.size).T + 2 * np.eye(h.size), vec(h))
    ),
    # Functions of one number.
    "relu": activation(jax.nn.relu),
    "tanh": activation(jnp.tanh),
    "sigmoid": activation(jax.nn.sigmoid),
    "gelu": activation(jax.nn.gelu),
    "gelu erf": activation(lambda h: jax.nn.gelu(h, approximate=False)),
    "silu": activation(jax.nn.silu),
    "mish": activation(jax.nn.mish),
    "elu": activation(jax.nn.elu),
    "selu": activation(jax.nn.selu),
    "celu": activation(jax.nn.celu),
    "leaky relu": activation(jax.nn.leaky_relu),
    "softplus": activation(jax.nn.softplus),
    "log sigmoid": activation(jax.nn.log_sigmoid),
    "squareplus": activation(jax.nn.squareplus),
    "soft sign": activation(jax.nn.soft_sign),
    "hard swish": activation(jax.nn.hard_swish),
    "hard tanh": activation(jax.nn.hard_tanh),
    "relu6": activation(jax.nn.relu6),
    "clip": activation(lambda h: jnp.clip(h, -0.5, 0.7)),
    "prelu": Operation(prelu),
    "maximum of a constant": activation(lambda h: jnp.maximum(h, 0.1)),
    "abs": activation(jnp.abs),
    "sin": activation(jnp.sin),
    "snake": activation(lambda h: h + jnp.sin(2 * h) ** 2 / 2),
    "where": Operation(pointwise(lambda h: jnp.where(h > 0.1, h**2, jnp.sin(h))), limit=100, bound=lambda b: b**2 + 1),
    "square": Operation(lambda h, a, b: h * h if a % 2 else jnp.square(h), limit=100, bound=lambda b: b**2),
    "cube": Operation(pointwise(lambda h: h**3), limit=20, bound=lambda b: b**3),
    "exp": Operation(pointwise(jnp.exp), limit=6, bound=np.exp),
    "expm1 by hand": Operation(pointwise(lambda h: jnp.exp(h) - 1), limit=6, bound=np.exp),
    "softplus by hand": activation(lambda h: jnp.log(1 + jnp.exp(h)), 30),
    "sigmoid by hand": activation(lambda h: 1 / (1 + jnp.exp(-h)), 30),
    "log": activation(lambda h: jnp.log(h**2 + 0.1)),
    "sqrt": activation(lambda h: jnp.sqrt(h**2 + 0.1)),
    "rsqrt": activation(lambda h: lax.rsqrt(h**2 + 0.1)),
    "power": activation(lambda h: (1 + jnp.abs(h)) ** 0.3),
    "reciprocal": activation(lambda h: 1 / (0.5 + h**2)),
    "erf": activation(lax.erf),
    "atan": activation(jnp.arctan),
    "asinh": activation(jnp.arcsinh),
    "log-gamma": activation(lambda h: lax.lgamma(h**2 + 3), 30, 200),
    "own derivative": activation(lambda h: cut_cotangent(h)),
    "polynomial": activation(lambda h: jnp.polyval(jnp.array([0.1, -0.5, 1.0, 2.0]), h), 10, 100),
    "square root at 0": activation(lambda h: jnp.sqrt(jax.nn.relu(h)), kind="step"),
    "another's derivative": activation(doubled_slope, kind="step"),
    "floor": activation(jnp.floor),
    "sign": activation(jnp.sign, kind="step"),
    "step": activation(lambda h: (h > 0.2).astype(h.dtype)),
    "mod": activation(lambda h: jnp.mod(h, 0.7), 1e3),
    "straight through": activation(lambda h: h + lax.stop_gradient(jnp.round(h) - h), kind="step"),
    "stop_gradient": Operation(lambda h, u, a, b: h * lax.stop_gradient(jnp.tanh(fit(u, h.shape, a))), 2, kind="step"),
    # Functions of several.
    "mul": Operation(of_two(jnp.multiply), 2, 100, lambda b: b**2),
    "gate": Operation(of_two(lambda h, u: h * jax.nn.sigmoid(u)), 2),
    "div": Operation(of_two(lambda h, u: h / (0.5 + u**2)), 2, bound=lambda b: 2 * b),
    "maximum": Operation(of_two(jnp.maximum), 2),
    "minimum": Operation(of_two(jnp.minimum), 2),
    "clamp": Operation(of_two(lambda h, u: lax.clamp(*jnp.broadcast_arrays(-jnp.abs(u), h, jnp.abs(u) + 1))), 2),
    "where of another": Operation(lambda h, u, v, a, b: jnp.where(fit(u, h.shape, a) > 0, h, fit(v, h.shape, b)), 3),
    "atan2": Operation(of_two(lambda h, u: jnp.arctan2(h, 1 + jnp.abs(u))), 2, bound=lambda b: 4),
    "atan2 all around": Operation(of_two(jnp.arctan2), 2, bound=lambda b: 4, kind="step"),
    "hypot": Operation(of_two(jnp.hypot), 2, bound=lambda b: 2 * b, kind="step"),
    "logaddexp": Operation(of_two(jnp.logaddexp), 2, bound=lambda b: b + 1),
    "power of two": Operation(of_two(lambda h, u: (1 + jnp.abs(h)) ** jnp.tanh(u)), 2, 1e3, lambda b: b + 1),
    "remainder": Operation(of_two(lambda h, u: lax.rem(*jnp.broadcast_arrays(h, 1 + u**2))), 2, 1e3),
    # Bilinear.
    "matmul": Operation(lambda h, u, a, b: mat(h) @ fit(u, (mat(h).shape[1], 1 + a)), 2, 30, lambda b: 12 * b**2),
    "gram": Operation(lambda h, a, b: mat(h) @ mat(h).T, 1, 30, lambda b: 12 * b**2),
    "outer": Operation(lambda h, u, a, b: jnp.outer(vec(h)[:3], vec(u)[: 1 + a]), 2, 100, lambda b: b**2),
    "dot": Operation(lambda h, u, a, b: vec(h) @ fit(u, (h.size,)), 2, 30, lambda b: 12 * b**2),
    "convolve": Operation(
        lambda h, u, a, b: jnp.convolve(vec(h), vec(u)[:2], precision="highest"), 2, 30, lambda b: 2 * b**2
    ),
    "attention": Operation(attention, 2, 10),
    "bilinear by scalar": Operation(lambda h, u, a, b: vec(u)[a % u.size] * h, 2, 100, lambda b: b**2),
    # Reductions.
    "max": Operation(reduction(jnp.max)),
    "min": Operation(reduction(jnp.min)),
    "prod": Operation(reduction(jnp.prod), limit=2, bound=lambda b: 2.0**SIZE),
    "max pool": Operation(lambda h, a, b: windows(h, a, b, lax.max, -np.inf)),
    "min pool": Operation(lambda h, a, b: windows(h, a, b, lax.min, np.inf)),
    "norm": Operation(lambda h, a, b: jnp.linalg.norm(vec(h)), bound=lambda b: 4 * b, kind="step"),
    "variance": Operation(reduction(jnp.var), limit=100, bound=lambda b: b**2),
    "median": Operation(lambda h, a, b: jnp.median(vec(h))),
    "number of the largest": Operation(lambda h, a, b: jnp.argmax(vec(h)) * 1.0 + h, bound=lambda b: b + 12),
    "count": Operation(lambda h, a, b: (h > 0.1).sum() * vec(h)[0], bound=lambda b: 12 * b),
    # Softmax and normalisations.
    "softmax": Operation(at_axis(jax.nn.softmax)),
    "log_softmax": Operation(at_axis(jax.nn.log_softmax), bound=lambda b: 2 * b + 3),
    "logsumexp": Operation(reduction(jax.nn.logsumexp), bound=lambda b: b + 3),
    "softmax by hand": Operation(at_axis(softmax_by_hand)),
    "masked softmax": Operation(at_axis(masked_softmax)),
    "log of the sum of exp": Operation(lambda h, a, b: jnp.log(jnp.exp(h).sum()), limit=20, bound=lambda b: b + 3),
    "layer norm": Operation(at_axis(layer_norm), bound=lambda b: 4),
    "rms norm": Operation(lambda h, a, b: h / jnp.sqrt((h**2).mean() + 1e-3), bound=lambda b: 4),
    "standardise": Operation(lambda h, a, b: (h - h.mean()) / (h.std() + 0.1), bound=lambda b: 4, kind="step"),
    # Orders, places and running combinations.
    "sort": Operation(lambda h, a, b: jnp.sort(*along(h, a))),
    "top_k": Operation(lambda h, a, b: lax.top_k(vec(h), min(2, h.size))[a % 2] * 1.0, bound=lambda b: b + 12),
    "index by choice": Operation(index_by_choice, 2),
    "chosen slice": Operation(chosen_slice, 2),
    "scatter": Operation(scatter, 2, bound=lambda b: 5 * b),
    "cumprod": Operation(lambda h, a, b: jnp.cumprod(vec(h)), limit=2, bound=lambda b: 2.0**SIZE),
    "cummax": Operation(lambda h, a, b: lax.cummax(vec(h), reverse=a % 2 == 1)),
    "cumlogsumexp": Operation(lambda h, a, b: lax.cumlogsumexp(vec(h)), bound=lambda b: b + 3),
    # Equations.
    "solve": Operation(solve, 2, 3, lambda b: 50),
    "cholesky": Operation(lambda h, a, b: jnp.linalg.cholesky(positive_definite(h)), limit=10, bound=lambda b: 30),
    "power spectrum": Operation(
        lambda h, a, b: jnp.abs(jnp.fft.rfft(vec(h))) ** 2, limit=30, bound=lambda b: 150 * b**2, kind="step"
    ),
    # Calls, loops and branches.
    "jit": Operation(lambda h, u, a, b, body: jax.jit(body)(h, u), 2, bodies=1),
    "jit, twice": Operation(call_twice, 2, bodies=1),
    "checkpoint": Operation(lambda h, u, a, b, body: jax.checkpoint(body)(h, u), 2, bodies=1),
    "vmap": Operation(lambda h, u, a, b, body: jax.vmap(lambda row: body(row, u))(mat(h)), 2, bodies=1),
    "vmap of two": Operation(
        lambda h, u, a, b, body: jax.vmap(body, out_axes=a % 2)(mat(h), fit(u, mat(h).shape)), 2, bodies=1
    ),
    "scan": Operation(scan, 2, bodies=1, bound=lambda b: 2 * b),
    "fori_loop": Operation(fori_loop, 2, bodies=1),
    "cond": Operation(cond, 2, bodies=2),
}
IN_BODIES = 10.0  # the size of what comes out of bodies, so that a loop's carry is as large after a step as before


def limited(value, limit, how):
    """A value in range: by a factor, by saturation of two kinds, or divided by what its size is."""
    h, bound = value
    if bound <= limit:
        return value
    if how == 0:
        return Bounded(h * (limit / bound), limit)
    if how == 1:
        return Bounded(limit * jnp.tanh(h / limit), limit)
    if how == 2:
        return Bounded(h / (1 + jnp.abs(h) / limit), limit)
    return Bounded(h * (lax.rsqrt((h**2).mean() + 1) * (limit / 4)), limit)


def run(steps, arguments, taps=None):
    """All values of a program. Taps are added to the steps' results, if there are any."""
    values = list(arguments)
    for number, (name, operands, (a, b, how, *bodies)) in enumerate(steps):
        operation = OPERATIONS[name]
        how = 0 if operation.kind == "linear" else how
        taken = [limited(values[i], operation.limit, how) for i in operands]
        size = max(value.bound for value in taken)
        functions = [functools.partial(call, body, max(size, IN_BODIES), how) for body in bodies]
        h = operation.fun(*(value.array for value in taken), a, b, *functions)
        bound = max(size, IN_BODIES) * 2 if bodies else float(operation.bound(size))
        h = h if h.size <= SIZE else vec(h)[:SIZE]
        h = h if taps is None else h + taps[number]
        values.append(Bounded(h, bound))
    return values


def call(body, size, how, *arrays):
    """A body as a function of arrays. What it returns is three numbers in range."""
    last = run(body, [Bounded(array, size) for array in arrays])[-1]
    return fit(limited(last, IN_BODIES, how).array, (3,))


def evaluate(steps, x, taps=None):
    """The output of a program, a number: the sum of all that no step uses."""
    values = run(steps, [Bounded(x, 1e5)], taps)
    used = {i for _, operands, _ in steps for i in operands}
    return sum(value.array.sum() for i, value in enumerate(values) if i not in used)


class Case(NamedTuple):
    """A program, and how its argument is made.

    Attributes:
        entries: for each entry of the argument, how input and reference differ.
        seed: of the random numbers that they are made of.
    """

    steps: tuple
    shape: tuple
    entries: tuple
    seed: int

    @property
    def fun(self):
        return functools.partial(evaluate, self.steps)

    def input_and_reference(self):
        rng = np.random.default_rng(self.seed)
        x = rng.normal(size=len(self.entries))
        differences = {"any": 1.0, "equal": 0.0, "near": 1e-9, "huge": 10 ** rng.uniform(3, 4)}
        r = x + rng.normal(size=x.shape) * [differences[entry] for entry in self.entries]
        return x.reshape(self.shape), r.reshape(self.shape)


SMALL = st.integers(0, 3)


@st.composite
def programs(draw, names, most, arguments=1, nested=True):
    """Steps, each of which mostly takes the last value, and for the rest of its operands any."""
    steps = []
    for count in range(arguments, arguments + draw(st.integers(1, most))):
        name = draw(st.sampled_from([n for n in names if nested or not OPERATIONS[n].bodies]))
        operation = OPERATIONS[name]
        anyone = st.integers(0, count - 1).map(lambda i, last=count - 1: last - i)
        operands = [
            draw(st.just(count - 1) | st.just(count - 1) | anyone),
            *(draw(anyone) for _ in range(operation.operands - 1)),
        ]
        takes = 3 if name in ("scan", "fori_loop") else 2
        bodies = [draw(programs(names, 3, takes, nested=False)) for _ in range(operation.bodies)]
        steps.append((name, tuple(operands), (draw(SMALL), draw(SMALL), draw(SMALL), *bodies)))
    return tuple(steps)


@st.composite
def cases(draw, kinds, most):
    steps = draw(programs([name for name, operation in OPERATIONS.items() if operation.kind in kinds], most=most))
    shape = draw(st.sampled_from([(4,), (6,), (2, 3), (3, 2), (1, 4)]))
    size = int(np.prod(shape))
    entry = st.sampled_from(["any", "any", "any", "equal", "near", "huge"])
    entries = draw(st.lists(entry, min_size=size, max_size=size))
    return Case(steps, shape, tuple(entries), draw(st.integers(0, 999)))


RULES = ("rescale", "revealcancel")
WANTED = os.environ.get("JAXLIFT_PROGRAMS")
# Compiling a program takes a second or two. Running it step by step compiles each operation at each shape, which pays
# only after some hundreds of programs. XLA's optimisations aren't worth their time for either.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def once(fun, *args):
    """What a function gives that is called once."""
    call = fun if WANTED else jax.jit(fun, compiler_options=QUICKLY)
    return jax.device_get(call(*map(jnp.asarray, args)))


def explained(fun, x, r, rule):
    """Values and multipliers."""
    (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
    return (y, y_ref), pullback(jnp.ones_like(y))


def by_each_rule(fun, x, r):
    return [explained(fun, x, r, rule) for rule in RULES]


def rounding(case, x, r, rule):
    """A bound on what rounding makes of the sum: that of each step's value, times the value's multiplier.

    Contributions sum to what the differences of a program's values make together. Where a step's result is the small
    difference of large numbers, or jumps where its argument hardly differs, the rounding of those before it is more
    than 1e-16 of the output. The multipliers of numbers that are 0 on both sides, and added to each step's result, say
    how much more.
    """
    values, references = (run(case.steps, [Bounded(jnp.asarray(side), 1e5)])[1:] for side in (x, r))
    taps = [jnp.zeros_like(value.array) for value in values]
    _, multipliers = explained(lambda xt: evaluate(case.steps, *xt), (x, taps), (r, taps), rule)
    return np.finfo(float).eps * sum(
        np.sum(np.abs(m) * (np.abs(value) + np.abs(ref)))
        for m, value, ref in zip(
            [multipliers[0], *multipliers[1]],
            [x, *(value.array for value in values)],
            [r, *(value.array for value in references)],
            strict=True,
        )
    )


def errors(case):
    """By each rule, what is missing from the sum or wrong with the values, and the scale of what was summed."""
    x, r = case.input_and_reference()
    results, plain = once(lambda x, r: (by_each_rule(case.fun, x, r), (case.fun(x), case.fun(r))), x, r)
    if not np.isfinite(plain).all():
        return [(0.0, 1.0) for _ in RULES]
    found = []
    for values, multipliers in results:
        assert np.isfinite(multipliers).all()
        contributions = multipliers * (x - r)
        missing = np.abs(contributions.sum() - (values[0] - values[1]))
        scale = np.abs(contributions).sum() + np.abs(plain).sum() + np.finfo(float).tiny
        found.append((float(max(missing, *np.abs(np.subtract(values, plain)))), float(scale)))
    return found


def is_rounding(case, rule, error):
    """Whether an error is that of numbers, not of a rule.

    `rounding` sees what comes of a program's own values. RevealCancel makes more of them, inside the function that it
    explains: `f` at points beyond input and reference, which for a steep `f` are much larger than what is left of them
    in contributions. That a rule is wrong is as true in float32 as in float64, though, and the rounding of its numbers
    is 2^29 times larger.
    """
    x, r = map(jnp.asarray, case.input_and_reference())
    if error <= 1000 * rounding(case, x, r, rule):
        return True
    with jax.enable_x64(False):
        coarse, _ = errors(case)[RULES.index(rule)]
    return error <= 1e-5 * coarse


def relative_errors(case):
    """By each rule, the error over the scale of what was summed, unless it is rounding."""
    return [
        0.0 if error > 1e-9 * scale and is_rounding(case, rule, error) else error / scale
        for rule, (error, scale) in zip(RULES, errors(case), strict=True)
    ]


ROUNDING = 100 * np.finfo(float).eps  # of slopes of about 1 that cancel


def check_complete(case):
    assert max(relative_errors(case)) <= 1e-9


def check_linear(case):
    """A program of linear operations has one multiplier, its derivative, under any rule and at any reference."""
    x, r = case.input_and_reference()
    results, gradient = once(lambda x, r: (by_each_rule(case.fun, x, r), jax.grad(case.fun)(x)), x, r)
    for _, multipliers in results:
        np.testing.assert_allclose(multipliers, gradient, rtol=0, atol=1e-12 * np.abs(gradient).max() + ROUNDING)


def check_limit(case):
    """At the reference, multipliers are derivatives, unless a kink is so near that JAX's own depend on which side."""
    x, _ = case.input_and_reference()
    results, gradient = once(lambda x: (by_each_rule(case.fun, x, x), jax.grad(case.fun)(x)), x)
    if not np.isfinite(gradient).all():
        return
    scale = np.abs(gradient).max()
    for _, multipliers in results:
        if not np.abs(multipliers - gradient).max() <= 1e-8 * scale + ROUNDING:
            beside = [jax.grad(case.fun)(x + d) for d in 1e-9 * np.random.default_rng(0).normal(size=(3, *x.shape))]
            near_a_kink = max(np.abs(other - gradient).max() for other in beside) > 1e-4 * scale
            assert near_a_kink, (multipliers, gradient)


CHECKS = {
    "complete": (check_complete, ("linear", "smooth", "step")),
    "linear": (check_linear, ("linear",)),
    "limit": (check_limit, ("linear", "smooth")),
}


def by_many(name, count, most):
    """A test of drawn programs of so many steps at most, the same ones always, unless somebody wants more of them."""
    check, kinds = CHECKS[name]

    @settings(
        max_examples=int(WANTED or count),
        derandomize=WANTED is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(kinds, most))
    def test(case):
        with jax.enable_x64(True):
            check(case)

    test()


@pytest.mark.parametrize(("name", "count"), [("complete", 5), ("linear", 3), ("limit", 3)])
def test_some_programs(name, count):
    by_many(name, count, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("complete", 8), ("linear", 4), ("limit", 4)])
def test_more_programs(name, count):
    by_many(name, count, 8)
