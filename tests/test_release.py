"""What a release says of itself is the same wherever it stands."""

import re
import tomllib
from pathlib import Path

import jaxlift

ROOT = Path(__file__).parent.parent
RECIPE = (ROOT / ".conda" / "recipe.yaml").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PLACES = ("CITATION.cff", ".conda/recipe.yaml")


def test_the_version():
    found = {name: re.search(r'^ *version: "?([^"\n]+)', (ROOT / name).read_text(), re.M) for name in PLACES}
    assert {name: match and match[1] for name, match in found.items()} == dict.fromkeys(PLACES, jaxlift.__version__)
    assert f"\n## {jaxlift.__version__}, " in (ROOT / "CHANGELOG.md").read_text()


def test_the_recipe_requires_what_the_package_does():
    spaced = {re.sub(r"(>=)", r" \1", each) for each in PROJECT["dependencies"] + PYPROJECT["build-system"]["requires"]}
    listed = set(re.findall(r"^    - (\S+ >=\S+)$", RECIPE, re.M))
    assert listed - {"python >=${{ python_min }}"} == spaced
    assert f'python_min: "{PROJECT["requires-python"].removeprefix(">=")}"' in RECIPE
    [(command, main)] = PROJECT["scripts"].items()
    assert f"- {command} = {main}\n" in RECIPE


def test_the_index_shows_no_relative_link():
    """The substitutions that make its page of the README leave addresses and words."""
    page = (ROOT / "README.md").read_text()
    assert re.search(r"\]\((?!https?:)", page)
    for each in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        page = re.sub(each["pattern"], each["replacement"], page)
    assert not re.findall(r"\]\((?!https?:)[^)]*\)", page)
    assert "[DeepLIFT](https://" in page
