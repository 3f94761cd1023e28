"""Models of models: the mean over folds, and over both strands of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._arguments import LETTERS, check_model, check_option
from jaxlift._targets import Held
from jaxlift.genomics.targets import held

Strands = Literal["forward", "both"]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several models as one, or both strands of a sequence: what `ensemble` returns.

    Called with a batch, it returns the outputs of all members, a tuple. Which of them is explained, and their mean, is
    the target's: `mean`.

    Attributes:
        models: the models.
        strands: whether each sees the reverse complement too, as a member of its own.
        turn: what makes the outputs on the reverse complement those of the forward strand.
    """

    models: tuple[Callable[..., Any], ...]
    strands: Strands = "forward"
    turn: Callable[[Any], Any] | None = None

    def __call__(self, x: Any) -> tuple[Any, ...]:
        outputs = [model(x) for model in self.models]
        if self.strands == "both":
            opposite = reverse_complement(x)
            turn = self.turn or (lambda outputs: outputs)
            outputs += [turn(model(opposite)) for model in self.models]
        return tuple(outputs)

    def mean(self, target: Any = None) -> Held:
        """The target that is the mean of a target over all members, with weights of each member's own.

        Args:
            target: of one model: what `jaxlift.genomics.targets` makes, a function of the outputs, an int, a tuple of
                ints, or None for models with one output.

        Returns:
            The target to explain the ensemble with.

        Raises:
            ValueError: if positions matter to the target, both strands are explained, and nothing turns their outputs.
        """
        one = held(target)
        if one.positional and self.strands == "both" and self.turn is None:
            raise ValueError(
                "the target has weights for positions, but the outputs on the reverse complement run in the opposite "
                "direction: give ensemble(..., turn=), such as lambda y: y[:, ::-1] for outputs (N, L)."
            )
        count = len(self.models) * (2 if self.strands == "both" else 1)

        def weights(values: Any, *rows: Any) -> Any:
            of_members = tuple(one.weights(each, *rows) for each in values)
            return jax.tree.map(lambda leaf: leaf / count, of_members)

        def values(outputs: Any, *rows: Any) -> Any:
            return tuple(one.values(each, *rows) for each in outputs)

        return Held(weights, values, one.rows, one.names, one.positional)


def ensemble(
    models: Callable[..., Any] | Iterable[Callable[..., Any]],
    *,
    strands: Strands = "forward",
    turn: Callable[[Any], Any] | None = None,
) -> Ensemble:
    """Several models as one, such as the folds of a cross-validation, and both strands of a sequence.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from jaxlift.genomics import ensemble
    >>> folds = [lambda x, w=w: jnp.tanh(x @ w).sum(1) for w in jnp.arange(8.0).reshape(2, 4) / 10]
    >>> model = ensemble(folds, strands="both")
    >>> attr = jaxlift.attribute(model, target=model.mean())
    >>> x = jax.nn.one_hot(jnp.array([[0, 1, 2, 3, 3]]), 4)
    >>> scores = attr(x, reference=jnp.zeros((5, 4)))
    >>> both_strands = lambda x: jnp.mean(jnp.stack(model(x)), 0)
    >>> bool(jnp.allclose(scores.sum((1, 2)), both_strands(x) - both_strands(jnp.zeros((1, 5, 4))), atol=1e-5))
    True

    It is one attribution, with one forward and one backward pass of each member. Scores of the reverse complement come
    back turned: it is a linear function of the sequence. So the scores are the mean of the members'.

    Args:
        models: functions of a batch `(N, L, 4)` or `(N, 4, L)`, whose letters are in the order ACGT; or one.
        strands: ``"both"``: each model sees the reverse complement too.
        turn: a function that makes a model's outputs on the reverse complement those of the forward strand, such as
            ``lambda y: y[:, ::-1, ::-1]`` for positions and two strands `(N, L, 2)`. Without it they are taken as they
            come, which is right for targets that don't tell positions apart, such as log counts and profiles.

    Returns:
        An `Ensemble`, a function of a batch. Explain it with ``target=model.mean(target)``.

    Raises:
        ValueError: if there is no model; when called with both strands, if examples aren't sequences of four letters.
        TypeError: if a model can't be called.
    """
    members = (models,) if callable(models) else tuple(models)
    if not members:
        raise ValueError("an ensemble needs one model at least, got none.")
    for model in members:
        check_model(model)
    check_option("strands", strands, Strands)
    return Ensemble(members, strands, turn)


def reverse_complement(x: Any) -> Array:
    """The other strand of sequences, one-hot in the order ACGT: both axes of an example turned. Zeros stay zeros.

    Args:
        x: `(N, L, 4)` or `(N, 4, L)`.

    Raises:
        ValueError: for examples of another shape.
    """
    x = jnp.asarray(x)
    if x.ndim != 3 or LETTERS not in x.shape[1:]:
        raise ValueError(
            f"the reverse complement is of sequences (N, L, {LETTERS}) or (N, {LETTERS}, L), got the shape {x.shape}."
        )
    return x[:, ::-1, ::-1]
