"""Programs as people write them: loops, choices, orders, attention, factorisations, each of an array of six numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import AxisType, PartitionSpec

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 5))
S = RNG.normal(size=(5, 5)) / 2
B = RNG.normal(size=5)
MASK = np.array([True, False, True, True, False])
SEGMENTS = np.array([0, 0, 1, 2, 2, 1])
EXPERTS = np.stack([S, S.T, S @ S, S - 1, S + 1])


def dense(x):
    return x @ W


def flip(x):
    return x[::-1] @ W


def sequence(x):
    """A batch of one sequence: three vectors of four."""
    return jnp.outer(x[:3], B[:4])[None] + jnp.outer(x[3:], B[1:])[None] ** 2


def heads(x):
    """Queries, keys and values of two heads."""
    h = sequence(x).reshape(1, 3, 2, 2)
    return h, 2 * h, h + 1


def matrix(x):
    return jnp.outer(dense(x), flip(x)) + jnp.diag(jnp.arange(1, 6.0)) * 2


def positive_definite(x):
    return jnp.outer(dense(x), dense(x)) * 0.3 + jnp.diag(1 + dense(x) ** 2)


# Loops.


def rnn(x):
    def step(h, u):
        h = jnp.tanh(h @ S + u)
        return h, h.sum()

    h, ys = lax.scan(step, jnp.zeros(5), jnp.outer(x, B))
    return h.sum() + ys @ jnp.arange(6.0)


def lstm(x):
    def step(carry, u):
        h, c = carry
        z = h @ S + u
        i, f, g, o = jax.nn.sigmoid(z), jax.nn.sigmoid(2 * z), jnp.tanh(z / 2), jax.nn.sigmoid(z / 3)
        c = f * c + i * g
        return (o * jnp.tanh(c), c), None

    return lax.scan(step, (jnp.zeros(5), jnp.zeros(5)), jnp.outer(x, B))[0][0].sum()


def gru(x):
    def step(h, u):
        z, r = jax.nn.sigmoid(h @ S + u), jax.nn.sigmoid(h @ S.T + u)
        return (1 - z) * h + z * jnp.tanh((r * h) @ S + u), None

    return lax.scan(step, jnp.zeros(5), jnp.outer(x, B))[0].sum()


def selective(x):
    u = jnp.outer(x, B)
    dt = jax.nn.softplus(u)
    return u, jnp.exp(-dt), dt * u


def selective_scan(x):
    u, a, b = selective(x)

    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return (lax.scan(step, jnp.zeros(5), (a, b))[1] * jax.nn.silu(u)).sum()


def selective_associative_scan(x):
    u, a, b = selective(x)
    _, h = lax.associative_scan(lambda left, right: (left[0] * right[0], left[1] * right[0] + right[1]), (a, b))
    return (h * jax.nn.silu(u)).sum()


def stacked_layers(x):
    return lax.scan(lambda h, w: (jax.nn.relu(h @ w) + h, None), dense(x), jnp.stack([S, S.T, S @ S]))[0].sum()


def carry_that_varies_later(x):
    (a, b), ys = lax.scan(lambda c, u: ((2 * u, jnp.tanh(c[0]) + c[1]), c[1]), (0.0, 0.0), x)
    return a + b + ys.sum()


def counting_carry(x):
    n, total = lax.scan(lambda c, u: ((c[0] + (u > 0), c[1] + u * c[0]), None), (0, 0.0), x)[0]
    return total + n


def online_softmax(x):
    """Attention in one pass over keys, with a running maximum."""
    q, k, v = sequence(x)[0], 2 * sequence(x)[0], sequence(x)[0] + 1

    def step(carry, kv):
        m, norm, out = carry
        s = q @ kv[0]
        larger = jnp.maximum(m, s)
        p, decay = jnp.exp(s - larger), jnp.exp(m - larger)
        return (larger, norm * decay + p, out * decay[:, None] + p[:, None] * kv[1][None]), None

    _, norm, out = lax.scan(step, (jnp.full(3, -jnp.inf), jnp.zeros(3), jnp.zeros((3, 4))), (k, v))[0]
    return (out / norm[:, None]).sum()


def over_devices(x):
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("i")
    body = jax.shard_map(lambda u: lax.psum(jnp.tanh(u), "i") * u, mesh=mesh, in_specs=spec, out_specs=spec)
    return body(jnp.tanh(x)).sum()


@jax.custom_batching.custom_vmap
def with_own_vmap(x):
    return jnp.tanh(x) * 2


with_own_vmap.def_vmap(lambda size, batched, x: (jnp.tanh(x) * 2, True))

LOOPS = {
    "rnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "selective scan": selective_scan,
    "selective associative scan": selective_associative_scan,
    "stacked layers": stacked_layers,
    "carry that varies later": carry_that_varies_later,
    "counting carry": counting_carry,
    "online softmax": online_softmax,
    "fori_loop": lambda x: lax.fori_loop(0, 4, lambda i, h: jnp.tanh(h @ S) + h * i, dense(x)).sum(),
    "reverse scan": lambda x: lax.scan(lambda c, u: (jnp.tanh(c + u), c), 0.0, x, reverse=True)[1].sum(),
    "map": lambda x: lax.map(lambda u: jnp.tanh(u) * u, x).sum(),
    "map in batches": lambda x: lax.map(lambda u: jnp.tanh(u) * u, x, batch_size=4).sum(),
    "scan of checkpoints": lambda x: lax.scan(
        jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), dense(x), jnp.stack([S, S])
    )[0].sum(),
    "checkpoint of a scan": lambda x: jax.checkpoint(rnn)(x) * x[0],
    "while that doesn't vary": lambda x: jnp.tanh(dense(x)).sum() * lax.while_loop(lambda c: c < 5, lambda c: c + 2, 0),
    "shard_map": over_devices,
    "custom_vmap": lambda x: jax.vmap(with_own_vmap)(dense(x)).sum() + with_own_vmap(x[0]),
    "derivative inside": lambda x: (jax.grad(lambda u: jnp.tanh(u @ W).sum())(x) ** 2).sum(),
    "hessian inside": lambda x: jnp.trace(jax.hessian(lambda u: jnp.tanh(u @ W).sum())(x)),
}

# Choices and orders.


def top_experts(x):
    h = dense(x)
    values, which = lax.top_k(h, 2)
    return (jax.nn.softmax(values)[:, None] * jnp.tanh(jnp.einsum("d,kde->ke", h, jnp.asarray(EXPERTS)[which]))).sum()


def nearest_code(x):
    h, codes = dense(x), jnp.asarray(S)
    return codes[jnp.argmin(((h[None] - codes) ** 2).sum(-1))] @ B


CHOICES = {
    "cond": lambda x: lax.cond(True, jnp.tanh, lambda h: h, dense(x)).sum(),
    "cond with a constant branch": lambda x: lax.cond(W.sum() > 0, jnp.tanh, lambda h: jnp.ones(5), dense(x)).sum(),
    "cond that varies": lambda x: lax.cond(x.sum() > 0, jnp.tanh, jnp.square, dense(x)).sum(),
    "switch": lambda x: lax.switch(1, [jnp.tanh, jnp.square, lambda h: h], dense(x)).sum(),
    "switch that varies": lambda x: lax.switch(jnp.argmax(x[:3]), [jnp.tanh, jnp.square, lambda h: h], dense(x)).sum(),
    "hard routing": lambda x: jnp.tanh(dense(x) @ jnp.asarray(EXPERTS)[jnp.argmax(dense(x))]).sum(),
    "routing by one_hot": lambda x: (
        jnp.tanh(jnp.einsum("d,kde->ke", dense(x), EXPERTS)) * jax.nn.one_hot(jnp.argmax(dense(x)), 5)[:, None]
    ).sum(),
    "top experts": top_experts,
    "where of another value": lambda x: jnp.where(x.sum() > 0, jnp.tanh(dense(x)), jax.nn.relu(flip(x))).sum(),
    "select": lambda x: jnp.select([dense(x) > 1, flip(x) > 0], [dense(x) ** 2, flip(x)], jnp.tanh(dense(x))).sum(),
    "piecewise": lambda x: jnp.piecewise(
        dense(x), [dense(x) < 0, dense(x) > 1], [lambda h: -h, lambda h: h**2, 1.0]
    ).sum(),
    "any and all": lambda x: jnp.where(
        jnp.any(dense(x) > 1), x.sum(), jnp.where(jnp.all(dense(x) < 0), 1.0, jnp.tanh(x[1]))
    ),
    "xor": lambda x: lax.reduce_xor_p.bind(dense(x) > 0, axes=(0,)) * x[0] if hasattr(lax, "reduce_xor_p") else x[0],
    "count": lambda x: (dense(x) > 0).sum() * x[0],
    "argmax as a number": lambda x: dense(x).argmax() * 1.0 + flip(x).argmin() * x[0],
    "index": lambda x: jnp.asarray(B)[jnp.clip((x[0] * 2).astype(int), 0, 4)] * x.sum(),
    "dynamic_slice": lambda x: lax.dynamic_slice(dense(x), ((jnp.abs(x[0]) * 1.5).astype(int),), (2,)).sum(),
    "dynamic_update_slice": lambda x: (
        lax.dynamic_update_slice(dense(x), x[:2], ((jnp.abs(x[0]) * 1.5).astype(int),)) * B
    ).sum(),
    "nearest code": nearest_code,
    "sort": lambda x: jnp.sort(dense(x)) @ B,
    "sort of columns": lambda x: (jnp.sort(jnp.outer(x, B), axis=0) * np.arange(30).reshape(6, 5)).sum(),
    "argsort": lambda x: dense(x)[jnp.argsort(flip(x))] @ B,
    "sort by two keys": lambda x: lax.sort((jnp.round(dense(x)), flip(x)), num_keys=2)[1] @ B,
    "median": lambda x: jnp.median(dense(x)),
    "percentile": lambda x: jnp.percentile(dense(x), 30.0),
    "top_k": lambda x: lax.top_k(dense(x), 3)[0] @ B[:3],
    "searchsorted": lambda x: jnp.searchsorted(jnp.sort(B), dense(x)).sum() * x[0],
    "interp": lambda x: jnp.interp(dense(x), jnp.arange(-3, 4.0), jnp.arange(-3, 4.0) ** 2).sum(),
    "histogram": lambda x: jnp.histogram(dense(x), bins=4, range=(-5.0, 5.0))[0] @ jnp.arange(4.0),
    "unique": lambda x: jnp.unique(jnp.round(dense(x)), size=5).sum(),
    "prod": lambda x: jnp.prod(dense(x)),
    "prod over an axis": lambda x: jnp.prod(jnp.outer(x, B), axis=0).sum(),
    "cumprod": lambda x: jnp.cumprod(dense(x)) @ B,
    "cummax": lambda x: lax.cummax(dense(x)) @ B,
    "cummin": lambda x: lax.cummin(dense(x), reverse=True) @ B,
    "cumlogsumexp": lambda x: lax.cumlogsumexp(dense(x)) @ B,
    "segment_sum": lambda x: jnp.tanh(jax.ops.segment_sum(x, SEGMENTS, 3)).sum(),
    "segment_max": lambda x: jax.ops.segment_max(x, SEGMENTS, 3).sum(),
    "segment_min": lambda x: jax.ops.segment_min(x, SEGMENTS, 3).sum(),
    "segment_prod": lambda x: jax.ops.segment_prod(x, SEGMENTS, 3).sum(),
    "scatter max": lambda x: jnp.zeros(3).at[np.array([0, 1, 1, 2, 0, 2])].max(x).sum(),
    "scatter min": lambda x: (dense(x).at[np.array([0])].min(x[1]) * B).sum(),
    "scatter mul": lambda x: dense(x).at[np.array([0, 3, 3])].mul(x[:3]).sum(),
    "max over many": lambda x: (dense(x) - dense(x).max()) @ B,
}

# Integers, truth values, bits, fewer digits, and places that are made of the input.


def whole(x):
    return jnp.round(3 * x).astype(int)


def places(x):
    return whole(x) % 6


def to_pairs(x, combine):
    """Pairs of numbers, combined with what stands in the rows that three of the numbers name."""
    return (getattr(jnp.ones((6, 2)).at[places(x)[:3]], combine)(x.reshape(3, 2)) * W[:, :2]).sum()


def quantised(x):
    """A layer as it runs on integers of 8 bits."""
    activations = jnp.clip(jnp.round(x * 20), -127, 127).astype(jnp.int8)
    return jnp.tanh(jnp.dot(activations, np.int8(np.round(W * 40)), preferred_element_type=jnp.int32) / 1e3) @ B


def rounded(x):
    """Three complex numbers with integer parts, some of them 0."""
    return jnp.round(x[:3]) + 1j * jnp.round(x[3:])


DISCRETE = {
    "product of integers": lambda x: whole(x) @ whole(x[::-1]) * 1.0,
    "square of integers": lambda x: (whole(x) @ whole(x)) * 1.0,
    "8-bit layer": quantised,
    "8-bit overflow": lambda x: jnp.dot((whole(x) * 20).astype(jnp.int8), np.int8(np.round(W * 9))) @ B,
    "differences without a sign": lambda x: (lambda u: ((u - u[::-1]) @ W).sum())(jnp.abs(whole(x)).astype(jnp.uint8)),
    "product of truth values": lambda x: jnp.dot(x > 0, W > 0) @ B,
    "convolution of integers": lambda x: jnp.convolve(whole(x), np.array([1, -2, 3])) @ jnp.arange(8.0),
    "maximum of integers at places": lambda x: jnp.zeros(3, int).at[SEGMENTS].max(whole(x)) @ B[:3],
    "sums of integers at places": lambda x: whole(x).at[places(x)].add(whole(x**2)) @ W @ B,
    "bits of integers": lambda x: (lax.reduce(whole(x), 0, lax.bitwise_or, (0,)) + (whole(x) & 5).sum()) * 1.0,
    "equality of complex numbers": lambda x: (rounded(x) == 0) @ B[:3],
    "equality of two": lambda x: jnp.where(rounded(x) == rounded(x[::-1]), x[:3], x[3:]) @ B[:3],
    "choice of complex numbers": lambda x: jnp.where(rounded(x) == 0, rounded(x) + x[0], 2j * x[3:]).imag @ B[:3],
    "median of a spectrum": lambda x: jnp.median(jnp.abs(jnp.fft.rfft(x)) ** 2),
    "distance from 0": lambda x: jnp.hypot(jax.nn.relu(dense(x)), jax.nn.relu(flip(x))) @ B,
    "sign bit": lambda x: (jnp.signbit(dense(x)) * B).sum(),
    "copysign": lambda x: jnp.copysign(dense(x), flip(x)) @ B,
    "ldexp": lambda x: jnp.ldexp(dense(x), whole(x)[:5]) @ B,
    "frexp": lambda x: jnp.frexp(dense(x))[0] @ B,
    "8-bit floats": lambda x: dense(x).astype(jnp.float8_e4m3fn).astype(float) @ B,
    "reduced precision": lambda x: jnp.tanh(lax.reduce_precision(dense(x), 5, 3)) @ B,
    "set at a place": lambda x: x.at[jnp.argmax(x)].set(0) @ W @ B,
    "set at places": lambda x: to_pairs(x, "set"),
    "subtract at places": lambda x: to_pairs(x, "subtract"),
    "multiply at places": lambda x: to_pairs(x, "mul"),
    "maximum at places": lambda x: to_pairs(x, "max"),
    "multiply at places of batches": lambda x: jax.vmap(lambda r: r.at[whole(r)[:2] % 3].mul(r[1:]))(
        x.reshape(2, 3)
    ).ravel() @ W @ B,
    "places that may not be there": lambda x: x.at[whole(x) * 3].mul(x, mode="drop") @ W @ B,
    "bincount": lambda x: jnp.bincount(places(x), length=6) @ W @ B,
    "nonzero": lambda x: jnp.nonzero(x > 0, size=6, fill_value=0)[0] @ W @ B,
    "argpartition": lambda x: jnp.argpartition(x, 2) @ W @ B,
    "reduction of one's own": lambda x: lax.reduce(dense(x), 0.0, lambda a, b: a + b + a * b, (0,)),
    "reduction of two": lambda x: sum(
        lax.reduce(
            (x, jnp.arange(6.0)),
            (-jnp.inf, 0.0),
            lambda a, b: tuple(jnp.where(b[0] > a[0], v, u) for u, v in zip(a, b, strict=True)),
            (0,),
        )
    ),
    "products of windows": lambda x: lax.reduce_window(x, 1.0, lax.mul, (3,), (1,), "SAME") @ W @ B,
    "ragged product": lambda x: lax.ragged_dot(
        x.reshape(3, 2), W[:4].reshape(2, 2, 5), np.array([1, 2])
    ).sum(0) @ B,
    "ragged product of two": lambda x: lax.ragged_dot(
        x.reshape(3, 2), jnp.outer(x[:4], B).reshape(2, 2, 5), np.array([1, 2])
    ).sum(0) @ B,
}  # fmt: skip

# Functions of one and of several numbers.

FUNCTIONS = {
    "rem": lambda x: lax.rem(dense(x), 1.3 + flip(x) ** 2).sum(),
    "mod": lambda x: jnp.mod(dense(x), 0.7).sum() + jnp.mod(dense(x), flip(x)).sum(),
    "floor_divide": lambda x: (dense(x) // 0.3).sum() + jnp.floor_divide(dense(x), flip(x)).sum(),
    "power of two values": lambda x: (jnp.abs(dense(x)) ** flip(x)).sum(),
    "hypot": lambda x: jnp.hypot(dense(x), flip(x)).sum(),
    "erf_inv": lambda x: lax.erf_inv(jnp.tanh(dense(x)) * 0.9).sum(),
    "lgamma": lambda x: lax.lgamma(dense(x) ** 2 + 1).sum() + lax.digamma(dense(x) ** 2 + 1).sum(),
    "betainc": lambda x: jsp.special.betainc(1 + x[0] ** 2, 2.0, jax.nn.sigmoid(x[1])),
    "gammainc": lambda x: jsp.special.gammainc(2.0, dense(x) ** 2).sum(),
    "zeta": lambda x: jsp.special.zeta(dense(x) ** 2 + 2, 1.0).sum(),
    "polygamma": lambda x: jsp.special.polygamma(1, dense(x) ** 2 + 1).sum(),
    "bessel": lambda x: lax.bessel_i0e(dense(x)).sum() + lax.bessel_i1e(dense(x)).sum(),
    "sinc": lambda x: jnp.sinc(dense(x)).sum(),
    "polyval": lambda x: jnp.polyval(jnp.arange(4.0), dense(x)).sum(),
    "xlogy": lambda x: jsp.special.xlogy(dense(x) ** 2, flip(x) ** 2).sum(),
    "nan_to_num": lambda x: jnp.nan_to_num(dense(x)).sum(),
    "huber": lambda x: optax.huber_loss(dense(x)).sum(),
    "p-norm": lambda x: (jnp.abs(dense(x)) ** 3).sum() ** (1 / 3),
    "cosine": lambda x: dense(x) @ flip(x) / (jnp.linalg.norm(dense(x)) * jnp.linalg.norm(flip(x))),
    "std": lambda x: jnp.std(dense(x)) + jnp.var(x),
    "straight through": lambda x: (lambda h: h + lax.stop_gradient(jnp.sign(h) - h))(dense(x)).sum(),
    "one value in two lines": lambda x: jnp.where(x @ W > 0, (x @ W) ** 2, 0).sum(),
    "local response": lambda x: (dense(x) / (1 + 0.1 * jnp.convolve(dense(x) ** 2, jnp.ones(3), mode="same"))).sum(),
    "fft": lambda x: jnp.abs(jnp.fft.fft(x)).sum(),
    "power spectrum": lambda x: (jnp.abs(jnp.fft.rfft(jnp.tanh(x))) ** 2).sum(),
    "phase": lambda x: jnp.angle(jnp.fft.fft(x)[1:3]).sum(),
    "convolution by fft": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(x[::-1])).max(),
    "complex exp": lambda x: jnp.exp(1j * dense(x)).real.sum(),
    "complex product": lambda x: ((dense(x) + 1j * flip(x)) * (flip(x) - 2j * dense(x)).conj()).imag.sum(),
    "complex tanh": lambda x: jnp.abs(jnp.tanh(dense(x) + 1j * flip(x))).sum(),
    "determinant of 2 x 2": lambda x: jnp.linalg.det(jnp.outer(x[:2], x[2:4]) + jnp.eye(2)),
    "determinant of 3 x 3": lambda x: jnp.linalg.det(jnp.outer(x[:3], x[3:]) + jnp.eye(3)),
    "determinant": lambda x: jnp.linalg.det(matrix(x)),
    "slogdet": lambda x: jnp.linalg.slogdet(positive_definite(x))[1],
    "solve": lambda x: jnp.linalg.solve(S, dense(x)).sum(),
    "solve with a matrix that varies": lambda x: jnp.linalg.solve(matrix(x), flip(x)).sum(),
    "inverse": lambda x: jnp.linalg.inv(positive_definite(x)).sum(),
    "cholesky": lambda x: jnp.linalg.cholesky(positive_definite(x)).sum(),
    "solve by cholesky": lambda x: jsp.linalg.cho_solve(jsp.linalg.cho_factor(positive_definite(x)), flip(x)).sum(),
    "triangular solve": lambda x: jsp.linalg.solve_triangular(matrix(x), flip(x), lower=True).sum(),
    "transposed triangular solve": lambda x: jsp.linalg.solve_triangular(
        matrix(x), flip(x), trans=1, unit_diagonal=True
    ).sum(),
    "normal density": lambda x: jsp.stats.multivariate_normal.logpdf(dense(x), jnp.zeros(5), positive_definite(x)),
    "expm": lambda x: jsp.linalg.expm(matrix(x) * 0.1).sum(),
    "eigenvalues": lambda x: jnp.linalg.eigvalsh(positive_definite(x)) @ B,
    "eigenvectors": lambda x: (jnp.linalg.eigh(positive_definite(x))[1] ** 2 @ B)[0],
    "eigenvalues in batches": lambda x: jnp.linalg.eigvalsh(jnp.einsum("i,jk->ijk", x[:2], S + S.T)).max(),
    "complex eigenvalues": lambda x: jnp.abs(jnp.linalg.eigvals(matrix(x))).max(),
    "singular values": lambda x: jnp.linalg.svd(matrix(x), compute_uv=False) @ B,
    "nuclear norm": lambda x: jnp.linalg.norm(matrix(x), "nuc"),
    "pseudo-inverse": lambda x: jnp.linalg.pinv(matrix(x)[:, :3]).sum(),
    "orthogonal factor": lambda x: jnp.linalg.qr(matrix(x))[0] @ B @ B,
    "triangular factor": lambda x: jnp.abs(jnp.linalg.qr(matrix(x))[1]).sum(),
    "least squares": lambda x: jnp.linalg.lstsq(matrix(x)[:, :3], dense(x))[0].sum(),
    "resize": lambda x: jnp.tanh(jax.image.resize(jnp.outer(x, B), (4, 7), "bilinear")).sum(),
    "map_coordinates": lambda x: jsp.ndimage.map_coordinates(jnp.outer(x, B), [x[:3] ** 2, x[3:] ** 2], order=1).sum(),
    "einsum of three": lambda x: jnp.einsum("i,ij,j->", x, W, dense(x)),
}

# Softmax and attention.


def by_hand(h):
    return jnp.exp(h) / jnp.exp(h).sum()


def by_hand_with_max(h):
    return jnp.exp(h - h.max()) / jnp.sum(jnp.exp(h - h.max()))


def graph_attention(x):
    h = jnp.outer(x, B)
    logits = jax.nn.leaky_relu(h[:, None, 0] + h[None, :, 1])
    return (jax.nn.softmax(jnp.where(np.tri(6, dtype=bool), logits, -jnp.inf), -1) @ h).sum()


LINEN_ATTENTION = nn.MultiHeadDotProductAttention(2)
LINEN_PARAMS = LINEN_ATTENTION.init(jax.random.key(0), jnp.ones((1, 3, 4)))
SOFTMAX = {
    "softmax": lambda x: jax.nn.softmax(dense(x)) @ B,
    "log_softmax": lambda x: jax.nn.log_softmax(dense(x)) @ B,
    "logsumexp": lambda x: jax.nn.logsumexp(dense(x)),
    "weighted logsumexp": lambda x: jax.nn.logsumexp(dense(x), b=B**2),
    "logsumexp over an axis": lambda x: jax.nn.logsumexp(jnp.stack([dense(x), flip(x)]), axis=0).sum(),
    "log-mean-exp": lambda x: jnp.log(jnp.mean(jnp.exp(dense(x)))),
    "softmax where": lambda x: jax.nn.softmax(dense(x), where=MASK) @ B,
    "softmax masked by -inf": lambda x: jax.nn.softmax(jnp.where(MASK, dense(x), -jnp.inf)) @ B,
    "softmax masked by the minimum": lambda x: jax.nn.softmax(jnp.where(MASK, dense(x), jnp.finfo(x.dtype).min)) @ B,
    "softmax by hand": lambda x: by_hand(dense(x)) @ B,
    "softmax by hand with max": lambda x: by_hand_with_max(dense(x)) @ B,
    "logsumexp by hand": lambda x: jnp.log(jnp.sum(jnp.exp(dense(x)))),
    "softmax over the first axis": lambda x: (
        jax.nn.softmax(jnp.outer(x, x[:3]), axis=0) * np.arange(18).reshape(6, 3)
    ).sum(),
    "softmax with a temperature": lambda x: jax.nn.softmax(dense(x) / (1 + x[0] ** 2)) @ B,
    "softmax and one": lambda x: (lambda e: e / (1 + e.sum()))(jnp.exp(dense(x))) @ B,
    "softmax and epsilon": lambda x: (lambda e: e / (1e-6 + e.sum()))(jnp.exp(dense(x) - dense(x).max())) @ B,
    "entropy": lambda x: (lambda p: -(p * jnp.log(p)).sum())(jax.nn.softmax(dense(x))),
    "divergence": lambda x: (lambda p, q: (p * (jnp.log(p) - jnp.log(q))).sum())(
        jax.nn.softmax(dense(x)), jax.nn.softmax(flip(x))
    ),
    "cross-entropy": lambda x: optax.softmax_cross_entropy_with_integer_labels(dense(x), 1),
    "gumbel softmax": lambda x: jax.nn.softmax((dense(x) + jax.random.gumbel(jax.random.key(0), (5,))) / 0.5) @ B,
    "logaddexp": lambda x: jnp.logaddexp(dense(x), flip(x)).sum(),
    "graph attention": graph_attention,
    "linen attention": lambda x: LINEN_ATTENTION.apply(LINEN_PARAMS, sequence(x)).sum(),
    "linen layer norm": lambda x: nn.LayerNorm().apply({"params": {"scale": B, "bias": B}}, dense(x)) @ B,
    "group norm": lambda x: nnx.GroupNorm(6, num_groups=3, rngs=nnx.Rngs(0))(jnp.outer(B, x)).max(),
}

# Attention that JAX computes in float32, whatever its operands are.
SINGLE_PRECISION = {
    "attention": lambda x: jax.nn.dot_product_attention(*heads(x)).sum(),
    "causal attention": lambda x: jax.nn.dot_product_attention(*heads(x), is_causal=True).sum(),
    "masked attention": lambda x: jax.nn.dot_product_attention(
        *heads(x), mask=np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)[None, None]
    ).sum(),
    "nnx attention": lambda x: nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0), decode=False)(sequence(x)).sum(),
}

COMPLETE = LOOPS | CHOICES | DISCRETE | FUNCTIONS | SOFTMAX

REFUSED = {
    "schur": lambda x: jsp.linalg.schur(matrix(x))[0].sum(),
    "while": lambda x: lax.while_loop(lambda h: h.sum() < 9, lambda h: h * 1.5 + 1, jnp.abs(dense(x))).sum(),
    "pure_callback": lambda x: jax.pure_callback(np.tanh, jax.ShapeDtypeStruct((5,), x.dtype), dense(x)).sum(),
    "bitcast_convert_type": lambda x: lax.bitcast_convert_type(dense(x), np.int8).sum() * 1.0,
    "random_seed": lambda x: jax.random.normal(jax.random.key((x[0] * 10).astype(int))) * x[1],
    "ragged_dot_general": lambda x: lax.ragged_dot(W.T[:, :2], W.reshape(3, 2, 5), whole(x)[:3]).sum(),
}
