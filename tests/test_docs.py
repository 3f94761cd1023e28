"""What the documentation says is true: its code runs, and its commands are those that CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1][:40])
def test_code_of_the_readme_runs(code):
    exec(code, {})


def test_ci_runs_the_readmes_test_command():
    _, tests, _ = blocks("bash")
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_pictures_of_the_readme_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
