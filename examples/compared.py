"""What the examples that compare methods have in common: the methods' names and colours, and where numbers go."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Rules of `jaxlift.attribute`, by the names that their contributions have in the literature.
RULES = {
    "gradient x input": "gradient",
    "guided backprop x input": "guided_backprop",
    "deconvnet x input": "deconvnet",
    "ε-LRP": "epsilon_lrp",
    "DeepLIFT Rescale": "rescale",
    "DeepLIFT RevealCancel": "revealcancel",
    "DeepLIFT RevealCancel, dense only": "genomics_default",
}

COLOURS = {
    "gradient x input": "0.5",
    "guided backprop x input": "#9c6b3c",
    "deconvnet x input": "#d48fb8",
    "ε-LRP": "#b8a400",
    "integrated gradients": "#3a86c8",
    "integrated gradients, 5 steps": "#8fc1ea",
    "integrated gradients, 10 steps": "#3a86c8",
    "DeepLIFT Rescale": "#f0a04b",
    "DeepLIFT RevealCancel": "#cc2b2b",
    "DeepLIFT RevealCancel, dense only": "#e3705a",
    "occlusion": "#3f9b5f",
    "Shapley values": "#5b3f94",
    "Shapley sampling": "#5b3f94",
}


def save(figure: Figure, numbers: dict[str, Any], file: Path) -> None:
    """The picture, and beside it its numbers as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=200)
    file.with_suffix(".json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    print(f"picture: {file}, numbers: {file.with_suffix('.json')}")
