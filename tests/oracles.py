"""The paper's formulas in NumPy, as slow and as plain as they stand there.

A network is a list of layers. `deeplift` walks it forward with values, references and the positive and negative parts
of their differences, and backward with a multiplier for each part. No trick of the library is used: parts are summed
term by term.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Dense:
    """`y = x W + b`."""

    weights: np.ndarray
    bias: np.ndarray

    def forward(self, x):
        return x @ self.weights + self.bias

    def parts(self, x, r, positive, negative):
        """Section 3.5.1: the terms `w D` are sorted by their sign."""
        inputs, outputs = self.weights.shape
        plus, minus = np.zeros(outputs), np.zeros(outputs)
        for j, i in itertools.product(range(outputs), range(inputs)):
            term = self.weights[i, j] * (x - r)[i]
            plus[j] += term if term > 0 else 0
            minus[j] += term if term < 0 else 0
        return plus, minus

    def backward(self, x, r, positive, negative, plus, minus):
        """A term takes the multiplier of the part that it counts in; where the difference is 0, the mean of both."""
        m = np.zeros(len(x))
        for i, j in itertools.product(*map(range, self.weights.shape)):
            w, d = self.weights[i, j], (x - r)[i]
            m[i] += w * (plus[j] if w * d > 0 else minus[j] if w * d < 0 else (plus[j] + minus[j]) / 2)
        return m, m


def conv1d(kernel, bias, length):
    """A convolution over `length` positions (VALID, stride 1), as the matrix that it is.

    Values are flat: position, channel.
    """
    width, inputs, outputs = kernel.shape
    positions = length - width + 1
    weights = np.zeros((length, inputs, positions, outputs))
    for position, k in itertools.product(range(positions), range(width)):
        weights[position + k, :, position, :] = kernel[k]
    return Dense(weights.reshape(length * inputs, positions * outputs), np.tile(bias, positions))


@dataclass
class Scale:
    """`y = k x + b`, entry by entry: batch normalisation in inference. Parts change places where `k < 0`."""

    slope: np.ndarray
    offset: np.ndarray

    def forward(self, x):
        return self.slope * x + self.offset

    def parts(self, x, r, positive, negative):
        up, down = np.maximum(self.slope, 0), np.minimum(self.slope, 0)
        return up * positive + down * negative, up * negative + down * positive

    def backward(self, x, r, positive, negative, plus, minus):
        up, down = np.maximum(self.slope, 0), np.minimum(self.slope, 0)
        return up * plus + down * minus, up * minus + down * plus


@dataclass
class Mean:
    """The mean of consecutive groups of entries: average pooling. Parts go along."""

    size: int

    def forward(self, x):
        return x.reshape(-1, self.size).mean(1)

    def parts(self, x, r, positive, negative):
        return self.forward(positive), self.forward(negative)

    def backward(self, x, r, positive, negative, plus, minus):
        return np.repeat(plus, self.size) / self.size, np.repeat(minus, self.size) / self.size


@dataclass
class Residual:
    """`y = x + f(x)` for a list of layers `f`. Parts of the two branches add up."""

    layers: list[Any]

    def forward(self, x):
        return x + forward(self.layers, x)

    def parts(self, x, r, positive, negative):
        *_, (_, _, plus, minus) = trace(self.layers, x, r, positive, negative)
        return positive + plus, negative + minus

    def backward(self, x, r, positive, negative, plus, minus):
        inner = back(self.layers, trace(self.layers, x, r, positive, negative), plus, minus)
        return plus + inner[0], minus + inner[1]


@dataclass
class Nonlinearity:
    """An elementwise function and its derivative, for scalars."""

    f: Any
    derivative: Any

    def forward(self, x):
        return np.array([self.f(value) for value in x])


class Rescale(Nonlinearity):
    """Section 3.5.2."""

    def multiplier(self, x, r):
        return [self.derivative(b) if a == b else (self.f(a) - self.f(b)) / (a - b) for a, b in zip(x, r, strict=True)]

    def parts(self, x, r, positive, negative):
        m = np.array(self.multiplier(x, r))
        return m * positive, m * negative

    def backward(self, x, r, positive, negative, plus, minus):
        m = np.array(self.multiplier(x, r))
        return m * plus, m * minus


class RevealCancel(Nonlinearity):
    """Section 3.5.3. The limits where a part is 0 are written out."""

    def of_part(self, r, this, other):
        """The effect of one part, and its multiplier."""
        f = self.f
        effect = (f(r + this) - f(r) + f(r + other + this) - f(r + other)) / 2
        return effect, effect / this if this != 0 else (self.derivative(r) + self.derivative(r + other)) / 2

    def parts(self, x, r, positive, negative):
        plus = [self.of_part(*args)[0] for args in zip(r, positive, negative, strict=True)]
        minus = [self.of_part(*args)[0] for args in zip(r, negative, positive, strict=True)]
        return np.array(plus), np.array(minus)

    def backward(self, x, r, positive, negative, plus, minus):
        up = np.array([self.of_part(*args)[1] for args in zip(r, positive, negative, strict=True)])
        down = np.array([self.of_part(*args)[1] for args in zip(r, negative, positive, strict=True)])
        return up * plus, down * minus


def forward(layers, x):
    for layer in layers:
        x = layer.forward(x)
    return x


def trace(layers, x, r, positive, negative):
    """Value, reference and parts before each layer, and after the last."""
    states = [(x, r, positive, negative)]
    for layer in layers:
        x, r, positive, negative = states[-1]
        states.append((layer.forward(x), layer.forward(r), *layer.parts(x, r, positive, negative)))
    return states


def back(layers, states, plus, minus):
    """The multipliers of both parts before the first layer, from those after the last."""
    for layer, state in zip(layers[::-1], states[-2::-1], strict=True):
        plus, minus = layer.backward(*state, plus, minus)
    return plus, minus


def deeplift(layers, x, r, output):
    """The contributions of each input to one output."""
    d = x - r
    states = trace(layers, x, r, np.maximum(d, 0), np.minimum(d, 0))
    one_hot = np.eye(len(states[-1][0]))[output]
    plus, minus = back(layers, states, one_hot, one_hot)
    return plus * np.maximum(d, 0) + minus * np.minimum(d, 0)


def shapley(f, x, r):
    """Shapley values of the entries of `x`, by enumeration of the sets that come before each."""
    n = len(x)
    values = np.zeros(n)
    for i in range(n):
        others = [k for k in range(n) if k != i]
        for size in range(n):
            for before in itertools.combinations(others, size):
                present = np.isin(np.arange(n), before)
                without = np.where(present, x, r)
                present[i] = True
                weight = math.factorial(size) * math.factorial(n - 1 - size) / math.factorial(n)
                values[i] += weight * (f(np.where(present, x, r)) - f(without))
    return values


def gelu(x):
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


FUNCTIONS = {
    "relu": (lambda x: max(x, 0.0), lambda x: float(x > 0)),
    "tanh": (math.tanh, lambda x: 1 - math.tanh(x) ** 2),
    "sigmoid": (lambda x: 1 / (1 + math.exp(-x)), lambda x: 1 / (1 + math.exp(-x)) / (1 + math.exp(x))),
    "gelu": (gelu, lambda x: (1 + math.erf(x / math.sqrt(2))) / 2 + x * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)),
    "elu": (lambda x: x if x > 0 else math.expm1(x), lambda x: 1.0 if x > 0 else math.exp(x)),
    "softplus": (lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0.0), lambda x: 1 / (1 + math.exp(-x))),
}
