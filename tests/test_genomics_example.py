"""The example on simulated DNA runs, and what it says of itself holds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "genomics.py"


@pytest.mark.slow
def test_quick_run(tmp_path):
    subprocess.run([sys.executable, "-W", "error", SCRIPT, "--quick", "--output", tmp_path], check=True)
    results = json.loads((tmp_path / "results.json").read_text())

    for task, auroc in results["auroc"].items():
        assert 0.8 < auroc["network"] < auroc["possible"] <= 1, task
        assert auroc["possible"] > 0.98, task

    methods = results["methods"]
    best = "Rescale conv., RevealCancel dense"
    for name in ("Rescale", "RevealCancel", best):
        assert methods[name]["delta"] < 1e-4, name
        assert methods[name]["correlation"] > 0.8, name
    assert methods["guided backprop x input"]["delta"] > 1  # which keeps no sum
    assert methods["Rescale"]["distance"] < methods["guided backprop x input"]["distance"]
    assert methods[best]["matches"] > 20
    assert methods[best]["negative"] < 0.2

    for name, by_count in results["references"].items():
        assert by_count["1"]["agreement"] < by_count["10"]["agreement"] < by_count["50"]["agreement"], name
        assert by_count["50"]["agreement"] > 0.9, name

    pictures = ["gata1.png", "joint.png", "logos-1.png", "logos-2.png", "summary.png", "tal1.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == pictures
