"""What pytest must not import for doctests: these need packages that only the peers' environment has."""

collect_ignore = ["in_torch.py"]
