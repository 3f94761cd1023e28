"""The command ``jaxlift``, one module for each of its commands."""
