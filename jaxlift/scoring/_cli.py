"""The command ``jaxlift``."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import inspect
import json
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxlift._attribute import attribute
from jaxlift.scoring import _identity
from jaxlift.scoring._device import CALLED
from jaxlift.scoring._examples import Status
from jaxlift.scoring._plot import plot
from jaxlift.scoring._reference import NAMES
from jaxlift.scoring._run import KEPT, is_explained, score, summarize
from jaxlift.scoring._store import Store, StoreError

EXIT_CODES = """\
exit codes:
    0  every example is scored
    1  the model or the run failed; what is finished is kept, and the same command goes on from there
    2  the command can't be carried out as it stands, or the store was made with other settings
    3  all is finished, but some examples are bad: see `jaxlift info --bad`
   74  the disk is full, a file is damaged, or reading or writing failed: mend that, and give the same command again
   75  another run works on the store: try again later
  130, 143  stopped by Ctrl-C or SIGTERM; the same command goes on from there
"""
FINISHED, FAILED, USAGE, BAD_EXAMPLES, INPUT_OUTPUT = 0, 1, 2, 3, 74
TERMINATED = 128 + signal.SIGTERM
OUT_OF_MEMORY = (
    "the device is out of memory: begin anew, with --overwrite or another --out, and give --memory less than it has, "
    "such as 4GB, a smaller --batch-size, or fewer references."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """What the command does; returns its exit code."""
    given = _parser().parsed(arguments)
    try:
        with _that_goes_on(getattr(given, "model", "")):
            return given.do(given)
    except StoreError as error:
        return _failed(error, error.exit_code, given.parser)
    except (ValueError, TypeError, ModuleNotFoundError, FileNotFoundError, MemoryError) as error:
        if _kept(error):  # it came while the run went on: the model's, to be seen with its traceback
            raise
        return _failed(error, USAGE, given.parser)
    except OSError as error:
        return _failed(error, INPUT_OUTPUT, given.parser)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _failed(MemoryError(f"{OUT_OF_MEMORY} ({str(error).splitlines()[0]})"), FAILED, given.parser)
    except KeyboardInterrupt as error:
        return _failed(error, 128 + signal.SIGINT, given.parser)


def _failed(error: BaseException, code: int, parser: Parser) -> int:
    text = str(error) or "stopped"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    called = [note for note in getattr(error, "__notes__", ()) if note.startswith(CALLED)]
    if called:
        text = f"the model failed. {type(error).__name__}: {text}"
    lines = parser.in_options("\n".join([f"jaxlift: {text}", *called]))
    print(*map(_shown, [*lines, *_kept(error)]), sep="\n", file=sys.stderr)
    return code


def _shown(text: Any) -> str:
    """Text from anywhere, without what would act on a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))


def _kept(error: BaseException) -> list[str]:
    """What a run says of what it leaves, if it had begun."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith(KEPT)]


DEFAULT = r" \[[^]]*\]$"  # at the end of an option's help


class Parser(argparse.ArgumentParser):
    """One whose errors say what to write, and leave the list of all options to ``--help``."""

    def parsed(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            parser: Parser = getattr(given, "parser", self)
            like = [close for word in unknown for close in difflib.get_close_matches(word, parser.options(), 1)]
            parser.error(f"there is no {' '.join(unknown)}" + (f": did you mean {', '.join(like)}?" if like else "."))
        return given

    def options(self) -> dict[str, str]:
        """What each is for."""
        return {name: action.help or "" for action in self._actions for name in action.option_strings}

    def in_options(self, text: str) -> list[str]:
        """What the library says of its arguments, said of options; and what those may be that it takes as objects."""
        text = re.sub(r"attribute\(\.\.\., (\w+='paired')\)", r"\1", text)
        text = re.sub(r"\b(?:pairing|references)='(paired|shared)'", r"--\1", text)
        named: list[str] = []

        def option(found: re.Match[str]) -> str:
            name, value = f"--{found[1].replace('_', '-')}", (found[2] or "").strip("'")
            if name not in self.options():
                return found[0]
            named.append(name)
            return name if value in ("", "True") else f"{name} {value}"

        text = re.sub(r"\b([a-z_]+)=('[^']*'|-?\w+(?:[.+-]\w+)*)?", option, text)
        objects = [name for name in dict.fromkeys(named) if name in ("--target", "--rule", "--reference")]
        return [text, *(f"{name}: {re.sub(DEFAULT, '', self.options()[name])}" for name in objects)]

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, _shown(f"jaxlift: {message}\n`{self.prog} --help` has the options.\n"))


def _parser() -> Parser:
    parser = Parser(
        prog="jaxlift",
        description="DeepLIFT scores of whole data sets.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="`jaxlift score --help` has the options of a run, and the exit codes.",
    )
    versions = f"jaxlift {_identity.version('jaxlift')} (jax {jax.__version__}, Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=versions)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _score_parser(
        commands.add_parser(
            "score",
            help="score every example of a data set",
            description="Score every example of a data set, into a Zarr store. Stop or kill it when you like: the same "
            "command goes on where it stopped.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=EXIT_CODES,
        )
    )
    info = commands.add_parser("info", help="what is in a store, and how it was made")
    info.add_argument("store", type=Path)
    info.add_argument("--bad", action="store_true", help="only list the examples without scores, and why")
    info.add_argument("--json", action="store_true", help="for programs")
    info.set_defaults(do=_info, parser=info)
    plot = commands.add_parser("plot", help="a picture of one example's scores")
    plot.add_argument("store", type=Path)
    plot.add_argument("example", type=_number(0), help="its number, from 0")
    plot.add_argument("--out", type=Path, help="the picture's path [STORE-EXAMPLE.png]")
    plot.add_argument("--positions", type=_span, metavar="FROM:TO", help="only these positions of a sequence")
    plot.add_argument("--letters", help="what the channels of a sequence stand for [ACGT for a FASTA file]")
    plot.set_defaults(do=_plot, parser=plot)
    return parser


def _score_parser(parser: Parser) -> None:
    parser.add_argument(
        "model",
        help="package.module:function: a model (N, ...) -> (N, ...), what jaxlift.attribute "
        "returned, or a function without arguments that returns either",
    )
    parser.add_argument(
        "examples", help="an .npy, .npz, HDF5, Zarr or FASTA file; FILE:NAME where it has several arrays"
    )
    parser.add_argument("--out", type=Path, default=Path("scores.zarr"), help="the store [%(default)s]")
    what = parser.add_argument_group("what is explained")
    what.add_argument(
        "--target",
        type=_target,
        help="an output's number, several for several axes (1,2), 'all', or "
        "package.module:function of the outputs [the only one]",
    )
    what.add_argument("--rule", help="rescale, revealcancel, genomics_default, ..., or package.module:rule [rescale]")
    what.add_argument("--output", choices=["contributions", "multipliers", "hypothetical"], help="[contributions]")
    what.add_argument(
        "--channel-axis",
        type=_number(),
        metavar="AXIS",
        help="of the one-hot letters in an example, for hypothetical scores, frequencies, shuffles and FASTA files: "
        "-1 for (L, 4), -2 for (4, L) [-1]",
    )
    what.add_argument(
        "--precision",
        choices=["highest", "high", "default", "model"],
        help="of matrix products; model: its own. Less than the highest loses of the sum on GPUs and TPUs [highest]",
    )
    what.add_argument("--normalize-target", action="store_true", default=None, help="take the mean of all outputs off")
    compared = parser.add_argument_group("what it is compared with")
    compared.add_argument(
        "--reference",
        default="zeros",
        metavar="REF",
        help=f"{', '.join(NAMES)}, a file, or package.module:function of one example [%(default)s]",
    )
    pairing = compared.add_mutually_exclusive_group()
    pairing.add_argument("--paired", action="store_true", help="the file has one reference for each example")
    pairing.add_argument("--shared", action="store_true", help="each example is compared with all in the file")
    compared.add_argument("--shuffles", type=_number(1), default=20, metavar="N", help="of each example [%(default)s]")
    compared.add_argument("--seed", type=_number(), default=0, help="of the shuffles [%(default)s]")
    run = parser.add_argument_group("how it runs")
    run.add_argument("--memory", help="what the program may take on each device, such as 4GB [what there is]")
    run.add_argument(
        "--batch-size", type=_number(1), metavar="N", help="examples that a device computes at once [as fit]"
    )
    run.add_argument("--overwrite", action="store_true", help="begin anew, and remove the store that is there")
    run.add_argument(
        "--progress", choices=["auto", "bar", "lines", "none"], default="auto", help="[a bar on a terminal]"
    )
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    run.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, which share the work; under "
        "a scheduler that JAX knows it needs no more, elsewhere the next three",
    )
    run.add_argument("--coordinator", metavar="HOST:PORT", help="the first process's address, the same for all")
    run.add_argument("--processes", type=_number(1), metavar="N", help="how many there are")
    run.add_argument("--process", type=_number(0), metavar="I", help="which one this is, from 0")
    parser.set_defaults(do=_score, parser=parser)


def _score(given: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _terminated)
    sys.path.insert(0, os.getcwd())
    _join(given)
    attr = imported_model(given.model)
    names = ("target", "rule", "output", "normalize_target", "channel_axis", "precision")
    options = {name: _imported(getattr(given, name)) for name in names if getattr(given, name) is not None}
    if options.get("precision") == "model":
        options["precision"] = None
    reference = given.reference if _is_file(given.reference) else _imported(given.reference)
    if (given.paired or given.shared) and (callable(reference) or reference in NAMES):
        raise ValueError(
            f"--{'paired' if given.paired else 'shared'} says how a file's references go with the examples, but "
            f"--reference {given.reference} is no file: leave one of them out."
        )
    if given.shared:
        options["pairing"] = "shared"
    if given.paired:
        options["pairing"] = "paired"
    if not is_explained(attr):
        attr = attribute(attr, **options)
    elif options:
        flags = {"paired": given.paired, "shared": given.shared} | dict.fromkeys(options.keys() & {*names}, True)
        leave = ", ".join(f"--{name.replace('_', '-')}" for name, is_given in flags.items() if is_given)
        raise ValueError(f"{given.model} says itself what is explained: leave out {leave}.")
    summary = score(
        attr,
        given.examples,
        out=given.out,
        reference=reference,
        shuffles=given.shuffles,
        seed=given.seed,
        batch_size=given.batch_size,
        memory=given.memory,
        overwrite=given.overwrite,
        progress="none" if given.quiet else given.progress,
    )
    if not given.quiet and jax.process_index() == 0:
        print(summary)
    return BAD_EXAMPLES if summary.bad else FINISHED


def _info(given: argparse.Namespace) -> int:
    store, summary = _store(given.store), summarize(given.store)
    if given.json:
        described = {
            "examples": summary.examples,
            "scored": summary.scored,
            "largest_delta": summary.largest_delta,
            "bad": {str(number): status.name.lower() for number, status in summary.bad.items()},
            "settings": store.settings,
            "runs": store.runs,
        }
        print(json.dumps(described, indent=2))
        return FINISHED
    if given.bad:
        for number, status in summary.bad.items():
            print(number, status.name.lower())
        return FINISHED
    print(_shown(summary))
    for name, array in store.arrays.items():
        print(f"  {_shown(name):17} {array.dtype!s:8} {array.shape}, {array.chunks[0]} examples in a chunk")
    for name, value in store.settings.items():
        text = (
            value if not isinstance(value, dict) else ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
        )
        print(_shown(f"{name.replace('_', ' ')}: {text}"))
    for run in store.runs:
        ended = f"to {run['ended']}" if "ended" in run else "not finished"
        started, host, processes, devices = (run.get(name) for name in ("started", "host", "processes", "devices"))
        command = " ".join(map(str, run.get("command", ())))
        print(_shown(f"run: {started} {ended}, {host}, {processes} x {devices} devices: {command}"))
    return FINISHED


def _plot(given: argparse.Namespace) -> int:
    store = _store(given.store)
    name = store.settings["attribution"]["output"]
    if not 0 <= given.example < store.count:
        raise ValueError(f"there is no example {given.example}: the store has {store.count}, from 0.")
    status = Status(int(store.arrays["status"][given.example]))
    if status != Status.SCORED:
        raise ValueError(f"example {given.example} has no scores: {status.name.lower().replace('_', ' ')}.")
    out = given.out or Path(f"{given.store.stem}-{given.example}.png")
    letters = given.letters or store.settings["examples"].get("letters")
    scores = np.asarray(store.arrays[name][given.example])
    if letters is not None and scores.ndim == 2:
        axis = store.settings["attribution"].get("channel_axis")  # None, the last
        scores = scores if axis is None else np.moveaxis(scores, axis, -1)
    plot(scores, out, title=f"example {given.example}: {name}", letters=letters, positions=given.positions)
    print(out)
    return FINISHED


def _store(path: Path) -> Store:
    if not path.exists():
        raise StoreError(f"there is no store {path}.")
    return Store(path, mode="r")


def _join(given: argparse.Namespace) -> None:
    """Become one of the processes of a run, if it has several."""
    those = {"--coordinator": given.coordinator, "--processes": given.processes, "--process": given.process}
    missing = [name for name, value in those.items() if value is None]
    if not given.distributed:
        if len(missing) < len(those):
            raise ValueError(
                f"{', '.join(those.keys() - {*missing})} is for one of several processes: add --distributed."
            )
        return
    if not missing and given.process >= given.processes:
        raise ValueError(
            f"--process {given.process}: expected 0 to {given.processes - 1}, for --processes {given.processes}."
        )
    try:
        jax.distributed.initialize(given.coordinator, given.processes, given.process)
    except ValueError as error:
        raise ValueError(
            "--distributed: no scheduler that JAX knows, such as Slurm or Open MPI, says which processes there are: "
            f"give {', '.join(missing) or 'other values'} too, as in --coordinator HOST:PORT --processes 4 --process "
            f"0. ({error})"
        ) from error


def imported_model(text: str) -> Callable[..., Any]:
    """The model that ``package.module:function`` names, or that the function makes."""
    if ":" not in text:
        raise ValueError(
            f"{text!r} is no model: expected package.module:function, such as {text.removesuffix('.py')}:model."
        )
    model = _imported(text)
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
    made = model()
    if not callable(made):
        raise ValueError(f"{text} takes no arguments, so it must return a model; it returned {type(made).__name__}.")
    return made


def _is_file(text: str) -> bool:
    """Whether a reference is a file, or an array in one, rather than a function in a module."""
    path = Path(text.rpartition(":")[0])
    data = [path / name for name in ("zarr.json", ".zgroup", ".zarray")]
    return Path(text).exists() or path.is_file() or any(file.exists() for file in data)


def _imported(value: Any) -> Any:
    """The object that text such as ``package.module:name`` names; other text, and what isn't text, as it is."""
    if not isinstance(value, str):
        return value
    module, _, name = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return value
    try:
        found = importlib.import_module(module)
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
def _that_goes_on(what: str) -> Iterator[None]:
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


def _target(text: str) -> Any:
    """A target from the command line."""
    with contextlib.suppress(ValueError):
        numbers = tuple(int(part) for part in text.split(","))
        return numbers if "," in text else numbers[0]
    if text != "all" and ":" not in text:
        raise argparse.ArgumentTypeError(
            f"expected an output's number, such as 1, several for several axes (1,2), all, or package.module:function "
            f"of the outputs, got {text!r}"
        )
    return text


def _number(least: int | None = None) -> Callable[[str], int]:
    """What reads a whole number."""

    def number(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least is None or int(text) >= least:
                return int(text)
        at_least = "" if least is None else f", {least} or more"
        raise argparse.ArgumentTypeError(f"expected a whole number{at_least}, got {text!r}")

    return number


def _span(text: str) -> tuple[int, int]:
    try:
        start, stop = text.split(":")
        return int(start), int(stop)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected FROM:TO, two positions such as 10:60, got {text!r}") from None


def _terminated(*_: Any) -> None:
    sys.exit(TERMINATED)
