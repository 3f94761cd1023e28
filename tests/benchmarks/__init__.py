"""Performance side by side: `python -m tests.benchmarks`. Imports nothing, so that every process stays small."""
