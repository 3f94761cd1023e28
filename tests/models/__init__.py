"""Small versions of models that other people wrote, as their users write them: explained unchanged, sums compared."""
