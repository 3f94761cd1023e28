"""The command ``jaxlift``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlift._attribute import attribute
from jaxlift.scoring._examples import Status
from jaxlift.scoring._plot import plot
from jaxlift.scoring._reference import NAMES
from jaxlift.scoring._run import KEPT, is_explained, score, summarize
from jaxlift.scoring._store import Store, StoreError, exists

EXIT_CODES = """\
exit codes:
    0  every example is scored
    1  the model or the run failed; what is finished is kept, and the same command goes on from there
    2  the command can't be carried out as it stands, or the store was made with other settings
    3  all is finished, but some examples are bad: see `jaxlift info --bad`
   74  the disk is full, or reading or writing failed: make room, and give the same command again
   75  another run works on the store: try again later
  130, 143  stopped by Ctrl-C or SIGTERM; the same command goes on from there
"""
FINISHED, USAGE, BAD_EXAMPLES, INPUT_OUTPUT = 0, 2, 3, 74


def main(arguments: Sequence[str] | None = None) -> int:
    """What the command does; returns its exit code."""
    given = _parser().parse_args(arguments)
    try:
        return given.do(given)
    except StoreError as error:
        return _failed(error, error.exit_code)
    except (ValueError, TypeError, ModuleNotFoundError, FileNotFoundError, MemoryError) as error:
        if _kept(error):  # it came while the run went on: the model's, to be seen with its traceback
            raise
        return _failed(error, USAGE)
    except OSError as error:
        return _failed(error, INPUT_OUTPUT)
    except KeyboardInterrupt as error:
        return _failed(error, 128 + signal.SIGINT)


def _failed(error: BaseException, code: int) -> int:
    text = str(error) or "stopped"
    print(f"jaxlift: {text}", *_kept(error), sep="\n", file=sys.stderr)
    return code


def _kept(error: BaseException) -> list[str]:
    """What a run says of what it leaves, if it had begun."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith(KEPT)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxlift",
        description="DeepLIFT scores of whole data sets.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="`jaxlift score --help` has the options of a run, and the exit codes.",
    )
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
    info.set_defaults(do=_info)
    plot = commands.add_parser("plot", help="a picture of one example's scores")
    plot.add_argument("store", type=Path)
    plot.add_argument("example", type=int, help="its number, from 0")
    plot.add_argument("--out", type=Path, help="the picture's path [STORE-EXAMPLE.png]")
    plot.add_argument("--positions", type=_span, metavar="FROM:TO", help="only these positions of a sequence")
    plot.add_argument("--letters", help="what the channels of a sequence stand for [ACGT for a FASTA file]")
    plot.set_defaults(do=_plot)
    return parser


def _score_parser(parser: argparse.ArgumentParser) -> None:
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
    what.add_argument("--normalize-target", action="store_true", default=None, help="take the mean of all outputs off")
    compared = parser.add_argument_group("what it is compared with")
    compared.add_argument(
        "--reference",
        default="zeros",
        metavar="REF",
        help=f"{', '.join(NAMES)}, a file, or package.module:function of one example [%(default)s]",
    )
    compared.add_argument("--paired", action="store_true", help="the file has one reference for each example")
    compared.add_argument("--shuffles", type=int, default=20, metavar="N", help="of each example [%(default)s]")
    compared.add_argument("--seed", type=int, default=0, help="of the shuffles [%(default)s]")
    run = parser.add_argument_group("how it runs")
    run.add_argument("--memory", help="what the program may take on each device, such as 4GB [what there is]")
    run.add_argument("--batch-size", type=int, metavar="N", help="examples that a device computes at once [as fit]")
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
    run.add_argument("--processes", type=int, metavar="N", help="how many there are")
    run.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    parser.set_defaults(do=_score)


def _score(given: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _terminated)
    sys.path.insert(0, os.getcwd())
    if given.distributed:
        jax.distributed.initialize(given.coordinator, given.processes, given.process)
    attr = imported_model(given.model)
    options = {name: getattr(given, name) for name in ("target", "rule", "output", "normalize_target")}
    options = {name: _imported(value) for name, value in options.items() if value is not None}
    if given.paired:
        options["pairing"] = "paired"
    if not is_explained(attr):
        attr = attribute(attr, **options)
    elif options:
        raise ValueError(f"{given.model} says itself what is explained: leave out --{', --'.join(options)}.")
    summary = score(
        attr,
        given.examples,
        out=given.out,
        reference=_imported(given.reference),
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
    print(summary)
    for name, array in store.arrays.items():
        print(f"  {name:17} {array.dtype!s:8} {array.shape}, {array.chunks[0]} examples in a chunk")
    for name, value in store.settings.items():
        text = (
            value if not isinstance(value, dict) else ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
        )
        print(f"{name.replace('_', ' ')}: {text}")
    for run in store.runs:
        ended = f"to {run['ended']}" if "ended" in run else "not finished"
        print(
            f"run: {run['started']} {ended}, {run['host']}, {run['processes']} x {run['devices']} devices: "
            f"{' '.join(run['command'])}"
        )
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
    letters = given.letters or store.settings["examples"]["letters"]
    scores = np.asarray(store.arrays[name][given.example])
    plot(scores, out, title=f"example {given.example}: {name}", letters=letters, positions=given.positions)
    print(out)
    return FINISHED


def _store(path: Path) -> Store:
    if not exists(path):
        raise StoreError(f"there is no store {path}.")
    return Store(path, mode="r")


def imported_model(text: str) -> Callable[..., Any]:
    """The model that ``package.module:function`` names, or that the function makes."""
    model = _imported(text)
    if not callable(model):
        raise ValueError(f"{text!r} is no model: expected package.module:function.")
    if is_explained(model):  # which has no named arguments, and is no factory
        return model
    try:
        parameters = inspect.signature(model).parameters.values()
    except ValueError:  # it doesn't say
        return model
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    is_factory = all(p.default is not p.empty or p.kind in variable for p in parameters)
    made = model() if is_factory else model
    if not callable(made):
        raise ValueError(f"{text} takes no arguments, so it must return a model; it returned {type(made).__name__}.")
    return made


def _imported(value: Any) -> Any:
    """The object that text such as ``package.module:name`` names; other text, and what isn't text, as it is."""
    if not isinstance(value, str) or ":" not in value or Path(value).exists():
        return value
    module, _, name = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))) or Path(module).exists():
        return value
    found = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {name}.")
        found = getattr(found, part)
    return found


def _target(text: str) -> Any:
    """A target from the command line."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        return text
    return numbers if "," in text else int(text)


def _span(text: str) -> tuple[int, int]:
    start, stop = text.split(":")
    return int(start), int(stop)


def _terminated(*_: Any) -> None:
    sys.exit(128 + signal.SIGTERM)
