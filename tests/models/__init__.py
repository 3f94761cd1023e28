"""Small versions of models that other people wrote, as their users write them: explained unchanged, sums compared."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported, which other packages do too
