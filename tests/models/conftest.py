"""What pytest must not import for doctests: these need packages that few have."""

from .catalogue import CATALOGUE

collect_ignore = [f"{framework}.py" for framework in (*CATALOGUE, "embeddings")] + ["__main__.py"]
