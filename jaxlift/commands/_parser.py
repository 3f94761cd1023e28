"""What all commands have in common: a parser whose errors say what to write, and what their arguments name."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import inspect
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxlift.scoring._places import place, reaching
from jaxlift.scoring._score import is_explained
from jaxlift.scoring._store import Store, StoreError

FINISHED, FAILED, USAGE, BAD_EXAMPLES, INPUT_OUTPUT = 0, 1, 2, 3, 74
TERMINATED = 128 + signal.SIGTERM


def shown(text: Any) -> str:
    """Text from anywhere, without its colours, nor what else would act on a terminal."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(text))
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


STORE = "what `jaxlift score` or `jaxlift variants` wrote: a folder such as scores.zarr, or a URL"
DEFAULT = r" \[[^]]*\]$"  # at the end of an option's help
# What the library says of Python, and how it is said to whoever is at a terminal.
WORDS = {
    r"attribute\(\.\.\., (\w+='paired')\)": r"\1",
    r"\b(?:pairing|references)='(paired|shared)'": r"--\1",
    r" If the input is one example without a batch, write x\[None\]\. If another argument .* batch_argnums\.": "",
    r": for one example write x\[None\], and reference= as one example\.": ".",
    r"pass jax\.vmap\(model\)(, or use jaxlift\.vjp)?": "name a function that is jax.vmap(model)",
    r"Choose with target=, a function such as `.*`": "Choose with --head, or with --target package.module:function",
    r"the path of an array, an array, or a function": "a file, or a function",
    r", in Python \w+\([^)]*\)": "",
    r"with missing_rule='derivative'": "with jaxlift.attribute(..., missing_rule='derivative') in a module of your own",
    r"name a file for h5, npz, bigwig, bedgraph or narrowpeak": "give --h5, --npz, --bigwig, --bedgraph, --narrowpeak",
}


class Help(argparse.HelpFormatter):
    """What has lines of its own keeps them, such as a list of exit codes; other text is filled."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """One whose errors say what to write, and leave the list of all options to ``--help``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"formatter_class": Help})

    def parsed(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            parser: Parser = getattr(given, "parser", self)
            like = [close for word in unknown for close in difflib.get_close_matches(word, parser.options(), 1)]
            meant = ", ".join(dict.fromkeys(like))
            parser.error(f"there is no {' '.join(unknown)}" + (f": did you mean {meant}?" if meant else "."))
        if "-" in map(str, vars(given).values()):
            given.parser.error("- is the standard input or output, which can't be taken here: name a file.")
        return given

    def options(self) -> dict[str, str]:
        """What each is for."""
        return {name: action.help or "" for action in self._actions for name in action.option_strings}

    def in_options(self, text: str) -> list[str]:
        """What the library says of its arguments, said of options; and what those may be that it takes as objects."""
        for of_python, here in WORDS.items():
            text = re.sub(of_python, here, text)
        named: list[str] = []

        def option(found: re.Match[str]) -> str:
            name, value = f"--{found[1].replace('_', '-')}", (found[2] or "").strip("'")
            if name not in self.options():
                return found[0]
            named.append(name)
            if value in ("", "True"):
                return name if re.match(r"[\s.,:;)]|$", found.string[found.end() :]) else f"{name} "
            return f"{name} {value}"

        text = re.sub(r"\b([a-z_]+)=('[^']*'|-?\w+(?:[.+-]\w+)*)?", option, text)
        objects = [name for name in dict.fromkeys(named) if name in ("--target", "--rule", "--reference")]
        return [text, *(f"{name}: {re.sub(DEFAULT, '', self.options()[name])}" for name in objects)]

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, shown(f"jaxlift: {message}\n`{self.prog} --help` has the options.\n"))


def where(text: str) -> Path:
    """A path, or a URL."""
    try:
        return place(text)
    except (ValueError, ModuleNotFoundError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def opened_store(path: Path, mode: str = "r") -> Store:
    """The store of a finished run, or of one that is still to be finished."""
    with reaching(path):
        is_there = path.exists()
    if not is_there:
        raise StoreError(f"there is no store {path}.")
    return Store(path, mode)


def imported_model(text: str) -> Callable[..., Any]:
    """The model that ``package.module:function`` names, or that the function makes."""
    if ":" not in text:
        is_saved = Path(text).is_file() and not text.endswith(".py")
        such = "of a function that loads this file" if is_saved else f"such as {text.removesuffix('.py')}:model"
        raise ValueError(f"{text!r} is no model: expected package.module:function, {such}.")
    model = imported(text)
    if isinstance(model, str):
        raise ValueError(f"{text!r} is no model: expected package.module:function, of names that Python can have.")
    if not callable(model):
        kind = f"an array of shape {np.shape(model)}" if hasattr(model, "shape") else f"of type {type(model).__name__}"
        raise ValueError(
            f"{text!r} is {kind}, and no model: name a function (N, ...) -> (N, ...), or one that returns it."
        )
    if is_explained(model):  # which has no named arguments, and is no factory
        return model
    try:
        parameters = inspect.signature(model).parameters.values()
    except ValueError:  # it doesn't say
        return model
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    is_factory = all(p.default is not p.empty or p.kind in variable for p in parameters)
    if not is_factory:
        return model
    with contextlib.redirect_stdout(sys.stderr):
        made = model()
    if not callable(made):
        raise ValueError(f"{text} takes no arguments, so it must return a model; it returned {type(made).__name__}.")
    return made


def imported(value: Any) -> Any:
    """The object that text such as ``package.module:name`` names; other text, and what isn't text, as it is."""
    if not isinstance(value, str):
        return value
    module, _, name = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return value
    try:
        with contextlib.redirect_stdout(sys.stderr):  # which is for what the command prints
            found = importlib.import_module(module)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ModuleNotFoundError(
                f"{module} imports {error.name}, which is not installed.", name=error.name
            ) from error
        raise ModuleNotFoundError(
            f"{value}: there is no module {error.name}, neither in this folder nor installed.", name=error.name
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(found).items() if getattr(value, "__module__", None) == module]
            like = difflib.get_close_matches(part, vars(found), 3)
            more = f"did you mean {', '.join(like)}?" if like else f"it has {', '.join(own[:8]) or 'no functions'}."
            raise ValueError(f"{module} has no {name}: {more}")
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def that_goes_on(what: str) -> Iterator[None]:
    """A user's code must not end the command as if all were scored."""
    try:
        yield
    except SystemExit as error:
        if error.code == TERMINATED:
            raise
        raise ValueError(
            f"{what} calls sys.exit({error.code!r}) when it is run: put what is for a script alone under "
            "`if __name__ == '__main__':`."
        ) from error


def number(least: int | None = None) -> Callable[[str], int]:
    """What reads a whole number."""

    def number(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least is None or int(text) >= least:
                return int(text)
        at_least = "" if least is None else f", {least} or more"
        raise argparse.ArgumentTypeError(f"expected a whole number{at_least}, got {text!r}")

    return number


def span(text: str) -> tuple[int, int]:
    """Two positions, such as ``10:60``."""
    try:
        start, stop = text.split(":")
        return int(start), int(stop)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected FROM:TO, two positions such as 10:60, got {text!r}") from None
