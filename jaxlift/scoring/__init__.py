"""Scores of whole data sets: `jaxlift.score`, and the command ``jaxlift``.

What it needs beside JAX and NumPy is the extra ``jaxlift[scoring]``, and is imported when it is first used.
"""

from jaxlift.scoring._examples import Status as Status
from jaxlift.scoring._score import score as score
from jaxlift.scoring._store import StoreError as StoreError
from jaxlift.scoring._summary import Summary as Summary
