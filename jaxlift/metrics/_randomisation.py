"""Metrics that put parameters, or the output that is explained, at random: do scores notice?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.tree_util import DictKey, keystr

from jaxlift._arguments import check_count, check_key, check_option, checked_input, is_known, number_of_examples
from jaxlift.metrics._maps import rank_agreement
from jaxlift.metrics._reading import scores_alone

Order = Literal["top_down", "bottom_up", "independent"]
Similarity = Callable[[Any, Any], Array]


def parameter_randomisation(
    explain: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    *,
    fresh: Any,
    layers: Sequence[str] | None = None,
    order: Order = "top_down",
    similarity: Similarity = rank_agreement,
) -> Array:
    """How far scores are still those of the trained model when its layers' parameters are random; 0 is best.

    The model parameter randomisation test of Adebayo et al. 2018 (arXiv 1810.03292): scores that remain the same don't
    depend on what was learnt. Layers are randomised one after the other and stay so, from the output to the input
    ("top_down", the paper's cascade) or from the input to the output ("bottom_up", which Hedström et al. 2024, arXiv
    2401.06465, advise); or each alone ("independent").

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from flax import nnx
    >>> def network(seed):
    ...     rngs = nnx.Rngs(seed)
    ...     return nnx.Sequential(nnx.Linear(6, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 1, rngs=rngs))
    >>> graph, params = nnx.split(network(0), nnx.Param)
    >>> fresh = nnx.state(network(1), nnx.Param)
    >>> def explain(params, x):
    ...     return jaxlift.attribute(nnx.merge(graph, params))(x, reference=jnp.zeros(6))
    >>> jaxlift.metrics.layers_of(params)
    ('layers/0', 'layers/2')
    >>> jaxlift.metrics.parameter_randomisation(explain, params, jnp.ones((3, 6)), fresh=fresh).shape
    (3, 2)

    A model of Flax NNX with other state, such as that of `nnx.BatchNorm`, is split and merged with it:
    `graph, params, rest = nnx.split(model, nnx.Param, ...)`. Of Flax Linen, parameters are `variables["params"]`, drawn
    anew by `model.init(key, x)["params"]`, and the model is
    `lambda x: model.apply({**variables, "params": params}, x)`. Of Equinox they are the module itself, and any pytree
    will do.

    Where noise in the scores hides that they agree, take their mean over noisy inputs, which is the smooth test (sMPRT)
    of Hedström et al. 2024: `explain` is then, with `jaxlift.smooth`,
    `jaxlift.smooth(jaxlift.attribute(...), noise=0.1 * (x.max() - x.min()), key=key)(x, reference=reference)`. (In
    Quantus, the last of the samples has no noise.) Their efficient test (eMPRT) is `complexity_rise`.

    Args:
        explain: a function `(params, x)` that returns scores alone, `(N, ...)` or a pytree of such arrays.
        params: the trained model's parameters, a pytree. What isn't a floating-point array stays as it is.
        x: the input, passed on to `explain`: arrays `(N, ...)`.
        fresh: random parameters in the structure and shapes of `params`. The paper initialises again; where that can't
            be done, `shuffled(params, key)`.
        layers: names of the layers from the input to the output, as `layers_of` writes them; a name holds for all that
            is beneath it. Parameters of layers that aren't named are never randomised. If left out,
            `layers_of(params)`.
        order: "top_down", "bottom_up" or "independent".
        similarity: of two scores, `(N,)`. The paper takes this one of signed scores and of magnitudes,
            `lambda a, b: rank_agreement(jnp.abs(a), jnp.abs(b))`, and others of images.

    Returns:
        `(N, len(layers))`, the similarity with the scores of the trained model. Column i is of random `layers[i]`, and,
        where order is "top_down", all above it; where it is "bottom_up", all below it.

    Raises:
        ValueError: if shapes or structures don't fit, the batch is empty, a layer isn't there, or the order of layers
            isn't known and must be given.
        TypeError: if the parameters hold no floating-point array.
    """
    check_option("order", order, Order)
    n = number_of_examples(checked_input(x, is_differentiated=False))
    _check_fresh(params, fresh)
    layers = layers_of(params) if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    names = [_name(path) if _is_floating(leaf) else "" for path, leaf in jax.tree.leaves_with_path(params)]
    of_layers = [[f"{name}/".startswith(f"{layer}/") for name in names] for layer in layers]
    unknown = [layer for layer, of_layer in zip(layers, of_layers, strict=True) if not any(of_layer)]
    if unknown or not layers:
        raise ValueError(f"layers={layers} must name parameters, but {unknown or 'none'} do not: there are {names}.")
    random = np.array(of_layers)
    if order == "top_down":
        random = np.logical_or.accumulate(random[::-1])[::-1]
    elif order == "bottom_up":
        random = np.logical_or.accumulate(random)
    leaves, structure = jax.tree.flatten(params)
    leaves = [jnp.asarray(leaf) if _is_floating(leaf) else leaf for leaf in leaves]
    drawn = [
        jnp.asarray(new, old.dtype) if _is_floating(old) else None
        for old, new in zip(leaves, jax.tree.leaves(fresh), strict=True)
    ]
    scores = scores_alone("parameter_randomisation", explain(params, x), n)

    def of_step(random: Array) -> Array:
        mixed = [
            old if new is None else jnp.where(is_random, new, old)
            for is_random, old, new in zip(random, leaves, drawn, strict=True)
        ]
        return _similar(similarity, scores, explain(jax.tree.unflatten(structure, mixed), x), n)

    return lax.map(of_step, jnp.asarray(random)).T


def layers_of(params: Any) -> tuple[str, ...]:
    """The names of a model's layers from the input to the output, as far as its parameters say their order.

    >>> import jax.numpy as jnp, jaxlift
    >>> layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> jaxlift.metrics.layers_of({"params": {f"Dense_{i}": layer for i in (0, 1, 2, 10)}})
    ('params/Dense_0', 'params/Dense_1', 'params/Dense_2', 'params/Dense_10')

    Layers are the entries of the outermost level that has several, among what holds floating-point arrays. Those of a
    list or tuple are in its order, those of a class in the order of its fields. JAX sorts a dictionary by its keys, so
    that it has an order only where these differ in numbers alone.

    Args:
        params: the parameters, a pytree.

    Returns:
        Names such as "encoder/Dense_0", the keys on the way with slashes between them.

    Raises:
        ValueError: if the order isn't known: give `layers` yourself, from the names in the error.
        TypeError: if there is no floating-point array.
    """
    paths = [path for path, leaf in jax.tree.leaves_with_path(params) if _is_floating(leaf)]
    if not any(paths):
        raise TypeError("the parameters must be a pytree with floating-point arrays in its entries, but have none.")
    depth = next((depth for depth in range(1, max(map(len, paths))) if len({path[:depth] for path in paths}) > 1), 1)
    entries = list(dict.fromkeys(path[:depth] for path in paths))
    if isinstance(entries[0][-1], DictKey):
        if len({re.sub(r"\d+", "", _name(entry)) for entry in entries}) > 1:
            raise ValueError(
                "a dictionary doesn't say which layer comes first: write layers=[...] with these names, from the input "
                f"to the output: {[_name(entry) for entry in entries]}."
            )
        entries.sort(key=lambda entry: [int(number) for number in re.findall(r"\d+", _name(entry))])
    return tuple(map(_name, entries))


def shuffled(params: Any, key: Array) -> Any:
    """Parameters whose numbers have changed places within each array: random ones for `parameter_randomisation`.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> shuffled = jaxlift.metrics.shuffled({"w": jnp.arange(6.0).reshape(3, 2)}, jax.random.key(0))
    >>> shuffled["w"].shape, sorted(shuffled["w"].ravel().tolist())
    ((3, 2), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])

    Their distribution stays that of training. An array of equal numbers stays the same, as biases of zeros do.

    Args:
        params: a pytree. What isn't a floating-point array stays as it is.
        key: a PRNG key.

    Returns:
        A pytree like `params`.
    """
    check_key(key)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [
        jax.random.permutation(key, jnp.ravel(leaf)).reshape(leaf.shape) if _is_floating(leaf) else leaf
        for key, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, drawn)


def logit_randomisation(
    explain: Callable[[Any, Array], Any],
    x: Any,
    *,
    target: int | Array | np.ndarray,
    classes: int,
    key: Array,
    similarity: Similarity = rank_agreement,
) -> Array:
    """How far the scores of a class are those of another, drawn at random; the lower, the better it tells them apart.

    The random logit test of Sixt et al. 2020 (arXiv 1912.09818).

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> weights, x = jax.random.normal(jax.random.key(0), (6, 3)), jnp.ones((4, 6))
    >>> explain = lambda x, target: x * weights.T[target]  # or jaxlift.attribute(model, target=target)(x)
    >>> jaxlift.metrics.logit_randomisation(explain, x, target=0, classes=3, key=jax.random.key(1)).shape
    (4,)

    Args:
        explain: a function `(x, target)` of the input and ints `(N,)` that returns scores alone, `(N, ...)` or a pytree
            of such arrays.
        x: the input, passed on to `explain`: arrays `(N, ...)`.
        target: the class that is explained; an int, or ints `(N,)`.
        classes: how many classes there are. All but the target are equally likely.
        key: a PRNG key.
        similarity: of two scores, `(N,)`. The paper takes the structural similarity of images.

    Returns:
        `(N,)`.

    Raises:
        ValueError: if shapes don't fit, the batch is empty, there are fewer than 2 classes, or a target isn't among
            them.
        TypeError: if targets aren't ints.
    """
    n = number_of_examples(checked_input(x, is_differentiated=False))
    check_count("classes", classes, least=2)
    check_key(key)
    target = jnp.asarray(target)
    if not jnp.issubdtype(target.dtype, jnp.integer) or target.shape not in ((), (n,)):
        raise TypeError(
            f"target must be an int, or ints {(n,)}, but has dtype {target.dtype} and shape {target.shape}."
        )
    if not isinstance(target, Tracer) and not ((-classes <= target) & (target < classes)).all():
        raise ValueError(f"target={target} must be between 0 and {classes - 1}.")
    target = jnp.broadcast_to(target % classes, (n,))
    other = (target + jax.random.randint(key, (n,), 1, classes, target.dtype)) % classes
    scores = scores_alone("logit_randomisation", explain(x, target), n)
    return _similar(similarity, scores, explain(x, other), n)


def _similar(similarity: Similarity, scores: Any, others: Any, n: int) -> Array:
    """The similarity of each example, or the error for one that isn't that."""
    similar = similarity(scores, others)
    if jnp.shape(similar) != (n,):
        raise ValueError(
            f"similarity(scores, others) must return one number for each example, {(n,)}, but returns the shape "
            f"{jnp.shape(similar)}."
        )
    return similar


def _check_fresh(params: Any, fresh: Any) -> None:
    """Raise the error for random parameters that can't take the place of trained ones."""
    structure, other = jax.tree.structure(params), jax.tree.structure(fresh)
    if structure != other:
        raise ValueError(f"fresh must have the structure of params, {structure}, but has {other}.")
    pairs = [*zip(jax.tree.leaves_with_path(params), jax.tree.leaves(fresh), strict=True)]
    for (path, old), new in pairs:
        if _is_floating(old) and (jnp.shape(old) != jnp.shape(new) or not _is_floating(new)):
            raise ValueError(
                f"fresh must have arrays like those of params, but {_name(path)} has shape {jnp.shape(new)} instead of "
                f"{jnp.shape(old)}, or isn't of floating-point numbers."
            )
    if is_known((params, fresh)) and all(np.array_equal(old, new) for (_, old), new in pairs if _is_floating(old)):
        raise ValueError("fresh has the numbers of params: draw random ones, such as by shuffled(params, key).")


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _name(path: tuple[Any, ...]) -> str:
    """The keys of a path as a name."""
    return keystr(path, simple=True, separator="/")
