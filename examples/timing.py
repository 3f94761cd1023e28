"""How long the examples' calls take."""

import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """The time of one call, the fastest of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(fun(*args, **kwargs))
        times.append(time.perf_counter() - start)
    return min(times)
