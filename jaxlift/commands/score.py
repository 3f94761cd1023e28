"""``jaxlift score``: every example of a data set, into a store."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jaxlift._attribute import attribute
from jaxlift.commands._parser import BAD_EXAMPLES, FINISHED, TERMINATED, Parser, imported, imported_model, number, where
from jaxlift.genomics import targets
from jaxlift.genomics._ensemble import ensemble
from jaxlift.genomics._matched import MatchedRegions
from jaxlift.genomics._windows import Windows
from jaxlift.scoring._examples import Encoding, Examples, open_array, reading
from jaxlift.scoring._letters import Ambiguous, Unknown
from jaxlift.scoring._reference import NAMES, OF_A_GENOME, SHUFFLES
from jaxlift.scoring._score import explained, is_explained, score
from jaxlift.scoring._shards import join, read_shard, telling_others
from jaxlift.scoring._summary import Summary

SAID_BY_ATTRIBUTION = (
    *("paired", "shared", "target", "head", "strands", "rule", "output", "normalize_target", "channel_axis", "layout"),
    "precision",
)
LAYOUTS = {"NL4": -1, "N4L": -2}

EXIT_CODES = """\
exit codes:
    0  every example is scored
    1  the model or the run failed; what is finished is kept, and the same command goes on from there
    2  the command can't be carried out as it stands, or the store was made with other settings
    3  all is finished, but some examples are bad: see `jaxlift info --bad`
   74  the disk is full, a file is damaged, or reading or writing failed: mend that, and give the same command again
   75  another run works on the store: try again later
  130, 143  stopped by Ctrl-C or SIGTERM; the same command goes on from there
  141  who reads what it prints, such as `head`, has stopped
"""


def add(commands: Any) -> None:
    """Add the command to those of ``jaxlift``."""
    parser = commands.add_parser(
        "score",
        help="score every example of a data set",
        description="Score every example of a data set, into a Zarr store. Stop or kill it when you like: the same "
        "command goes on where it stopped.",
        epilog=EXIT_CODES,
    )
    add_model(parser)
    parser.add_argument(
        "examples", help="an .npy, .npz, HDF5, Zarr or FASTA file; FILE:NAME where it has several arrays"
    )
    add_out(parser, "scores.zarr")
    genome = parser.add_argument_group("regions of a genome")
    genome.add_argument(
        "--regions",
        type=where,
        metavar="BED",
        help="the examples are windows of a genome, a FASTA file, centred on the regions in this file, BED of three "
        "columns to narrowPeak, at their summits if they have them",
    )
    genome.add_argument(
        "--width", type=number(1), metavar="L", help="positions that the model takes [those of each region]"
    )
    genome.add_argument(
        "--unstranded", action="store_true", help="read regions on strand - as the others, not as reverse complement"
    )
    add_letters(parser)
    add_explained(parser)
    compared = parser.add_argument_group("what it is compared with")
    compared.add_argument(
        "--reference",
        default="zeros",
        metavar="REF",
        help=f"{', '.join([*NAMES, OF_A_GENOME])}, frequencies such as 0.3,0.2,0.2,0.3, a file, or "
        "package.module:function of one example [%(default)s]",
    )
    pairing = compared.add_mutually_exclusive_group()
    pairing.add_argument("--paired", action="store_true", help="the file has one reference for each example")
    pairing.add_argument("--shared", action="store_true", help="each example is compared with all in the file")
    compared.add_argument("--shuffles", type=number(1), metavar="N", help="or matched regions of each example [20]")
    compared.add_argument("--seed", type=number(), help="that they are drawn from [0]")
    add_run(parser)
    parser.set_defaults(do=_score, parser=parser)


def add_out(parser: Parser, default: str) -> None:
    """The option for the store."""
    what = "the store, a path or a URL such as s3://bucket/scores.zarr [%(default)s]"
    parser.add_argument("--out", type=where, default=Path(default), help=what)


def add_model(parser: Parser) -> None:
    """The argument for the model."""
    parser.add_argument(
        "model",
        help="package.module:function: a model (N, ...) -> (N, ...), what jaxlift.attribute "
        "returned, or a function without arguments that returns either; of several models with commas between them the "
        "mean is explained",
    )


def add_letters(parser: Parser) -> None:
    """Options of how letters become numbers."""
    letters = parser.add_argument_group("how letters become numbers")
    axis = letters.add_mutually_exclusive_group()
    axis.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="NL4: sequences (N, L, 4), letters in the order ACGT; N4L: (N, 4, L) [NL4]",
    )
    axis.add_argument(
        "--channel-axis",
        type=number(),
        metavar="AXIS",
        help="the same for arrays of any rank: of the one-hot channels in an example, for hypothetical scores, "
        "frequencies and shuffles [-1]",
    )
    letters.add_argument("--unknown", choices=get_args(Unknown), default="zeros", help="what N is [%(default)s]")
    letters.add_argument(
        "--ambiguous",
        choices=get_args(Ambiguous),
        default="unknown",
        help="what IUPAC's letters for several bases are: as N, equal shares of these, or refused [%(default)s]",
    )


def add_explained(parser: Parser) -> None:
    """Options of what is explained."""
    what = parser.add_argument_group("what is explained")
    what.add_argument(
        "--target",
        type=_target_text,
        help=f"an output's number, several for several axes (1,2), 'all', {', '.join(targets.NAMES)} or several of "
        "these with commas between them, an .npy file with a number or weights for each example, or "
        "package.module:function of the outputs [the only one]",
    )
    what.add_argument("--head", metavar="NAME", help="which of several outputs, by its name or number")
    what.add_argument(
        "--strands",
        choices=["forward", "both"],
        default="forward",
        help="both: the mean of the model on a sequence and on its reverse complement [%(default)s]",
    )
    what.add_argument("--rule", help="rescale, revealcancel, genomics_default, ..., or package.module:rule [rescale]")
    what.add_argument("--output", choices=["contributions", "multipliers", "hypothetical"], help="[contributions]")
    what.add_argument(
        "--precision",
        choices=["highest", "high", "default", "model"],
        help="of matrix products; model: its own. Less than the highest loses of the sum on GPUs and TPUs [highest]",
    )
    what.add_argument("--normalize-target", action="store_true", default=None, help="take the mean of all outputs off")


def add_run(parser: Parser) -> None:
    """Options of how a run goes."""
    run = parser.add_argument_group("how it runs")
    run.add_argument("--memory", help="what the program may take on each device, such as 4GB [what there is]")
    run.add_argument(
        "--batch-size", type=number(1), metavar="N", help="examples that a device computes at once [as fit]"
    )
    run.add_argument("--overwrite", action="store_true", help="begin anew, and remove the store that is there")
    run.add_argument(
        "--progress", choices=["auto", "bar", "lines", "none"], default="auto", help="[a bar on a terminal]"
    )
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    run.add_argument(
        "--shard",
        metavar="I/N",
        help="compute one of N shards, I from 0. The others are commands of their own, at any time, on any machine. "
        "auto: as the scheduler says of the task of an array; auto/N: where it doesn't say how many there are",
    )
    run.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, which start together and share the work; under "
        "a scheduler that JAX knows it needs no more, elsewhere the next three",
    )
    run.add_argument("--coordinator", metavar="HOST:PORT", help="the first process's address, the same for all")
    run.add_argument("--processes", type=number(1), metavar="N", help="how many there are")
    run.add_argument("--process", type=number(0), metavar="I", help="which one this is, from 0")
    run.add_argument(
        "--local-devices",
        type=_devices,
        metavar="all|0,1",
        help="GPUs of its machine that this process takes: all that it sees, or these of them [all, unless other tasks "
        "of Slurm see the same: then the one of the task's number on the machine]",
    )


def begin(given: argparse.Namespace) -> None:
    """What comes before a user's model is imported: signals, its folder, and the other processes."""
    signal.signal(signal.SIGTERM, _terminated)
    if given.shard is not None:
        read_shard(given.shard)  # before a model is imported, which may take minutes
    sys.path.insert(0, os.getcwd())
    _join(given)


def attribution_of(given: argparse.Namespace, **options: Any) -> Callable[..., Any]:
    """What explains the model that is named, with these options of `attribute` besides those of the command."""
    models = [imported_model(name) for name in given.model.split(",")]
    names = ("rule", "output", "normalize_target", "precision")
    own = {name: imported(getattr(given, name)) for name in names if getattr(given, name) is not None}
    if own.get("precision") == "model":
        own["precision"] = None
    if given.layout is not None or given.channel_axis is not None:
        own["channel_axis"] = channel_axis(given)
    if any(map(is_explained, models)):
        flags = {name: getattr(given, name, None) not in (None, False, "forward") for name in SAID_BY_ATTRIBUTION}
        leave = ", ".join(f"--{name.replace('_', '-')}" for name, is_given in flags.items() if is_given)
        if leave or len(models) > 1:
            said = f"leave out {leave}" if leave else "name it alone"
            raise ValueError(f"{given.model} says itself what is explained: {said}.")
        return models[0]
    model, target = models[0], _target(given.target, given.head)
    if len(models) > 1 or given.strands == "both":
        if isinstance(target, np.ndarray):
            target = targets.weighted(target, per_example=True)
        model = ensemble(models, strands=given.strands)
        target = model.mean(target)
    return attribute(model, target=target, **own, **options)


def channel_axis(given: argparse.Namespace) -> int:
    """The axis of the channels in an example."""
    return LAYOUTS[given.layout or "NL4"] if given.channel_axis is None else given.channel_axis


def run_options(given: argparse.Namespace) -> dict[str, Any]:
    """The options of `jaxlift.score` that say how it runs."""
    return {
        "batch_size": given.batch_size,
        "memory": given.memory,
        "shard": given.shard,
        "overwrite": given.overwrite,
        "progress": "none" if given.quiet else given.progress,
    }


def ended(given: argparse.Namespace, summary: Summary) -> int:
    """Say how a run ended; its exit code."""
    if not given.quiet:
        print(summary)
    return BAD_EXAMPLES if summary.bad else FINISHED


def _score(given: argparse.Namespace) -> int:
    begin(given)
    with telling_others():
        return ended(given, _scored(given))


def _scored(given: argparse.Namespace) -> Summary:
    reference = given.reference if _is_file(given.reference) else imported(given.reference)
    drawn = {name: getattr(given, name) for name in ("shuffles", "seed") if getattr(given, name) is not None}
    if drawn and given.reference not in (*SHUFFLES, OF_A_GENOME):
        be, it = ("is", "it") if len(drawn) == 1 else ("are", "them")
        raise ValueError(
            f"{' and '.join(f'--{name}' for name in drawn)} {be} for references that are drawn: give --reference "
            f"{' or '.join([*SHUFFLES, OF_A_GENOME])}, or leave {it} out."
        )
    drawn = {"shuffles": 20, "seed": 0} | drawn
    pairing = {"pairing": "shared"} if given.shared else {"pairing": "paired"} if given.paired else {}
    attr = attribution_of(given, **pairing)
    axis = explained(attr).options.last_channel_axis
    with contextlib.ExitStack() as held:
        examples = held.enter_context(_examples(given, axis))
        if reference == OF_A_GENOME:
            if not isinstance(examples, Windows):
                raise ValueError(f"--reference {OF_A_GENOME} takes windows of the genome: give --regions.")
            regions = MatchedRegions(
                given.examples, examples.width, per_region=drawn["shuffles"], exclude=given.regions, seed=drawn["seed"]
            )
            reference = held.enter_context(contextlib.closing(regions))
        return score(
            attr,
            examples,
            out=given.out,
            reference=reference,
            **drawn,
            **run_options(given),
        )


def _examples(given: argparse.Namespace, axis: int) -> contextlib.closing[Examples]:
    """The examples that are named: those in a file, or windows of a genome."""
    if given.regions is None:
        for name in ("width", "unstranded"):
            if getattr(given, name):
                raise ValueError(f"--{name} is for windows of a genome: give --regions too.")
        return contextlib.closing(open_array(given.examples, Encoding(given.unknown, given.ambiguous, axis)))
    windows = Windows(
        given.examples,
        given.regions,
        given.width,
        stranded=not given.unstranded,
        channel_axis=axis,
        unknown=given.unknown,
        ambiguous=given.ambiguous,
    )
    return contextlib.closing(windows)


def _target_text(text: str) -> str:
    """What may be a target, or the error that says what is one."""
    is_numbers = all(part.removeprefix("-").isdecimal() for part in text.split(","))
    is_named = all(part.partition("@")[0].strip() in targets.NAMES for part in text.split(","))
    if is_numbers or is_named or text == "all" or ":" in text or text.endswith(".npy"):
        return text
    raise argparse.ArgumentTypeError(
        f"expected an output's number, such as 1, several for several axes (1,2), all, {', '.join(targets.NAMES)}, an "
        f".npy file, or package.module:function of the outputs, got {text!r}"
    )


def _target(text: str | None, head: str | None) -> Any:
    """A target from the command line."""
    if text is None:
        return None if head is None else targets.of_head(head)
    with contextlib.suppress(ValueError):
        numbers = tuple(int(part) for part in text.split(","))
        if head is not None:
            return targets.of_head(head, numbers)
        return numbers if "," in text else numbers[0]
    is_file = text.endswith(".npy")
    if is_file and not Path(text).exists():
        raise FileNotFoundError(f"there is no file {text}.")
    if head is not None and (is_file or ":" in text or text == "all"):
        raise ValueError(f"--head {head} is for targets by name or number: leave it out, or --target {text}.")
    if text == "all":
        return text
    if is_file:
        with reading(Path(text), "array that np.save wrote"):
            return np.load(text)
    return imported(text) if ":" in text else targets.from_text(text, head)


def _join(given: argparse.Namespace) -> None:
    """Become one of the processes of a run, if it has several."""
    those = {"--coordinator": given.coordinator, "--processes": given.processes, "--process": given.process}
    missing = [name for name, value in those.items() if value is None]
    if not given.distributed:
        said = [name for name in those if name not in missing]
        said += ["--local-devices"] * (given.local_devices is not None)
        if said:
            raise ValueError(f"{', '.join(said)} is for one of several processes: add --distributed.")
        return
    if not missing and given.process >= given.processes:
        raise ValueError(
            f"--process {given.process}: expected 0 to {given.processes - 1}, for --processes {given.processes}."
        )
    if given.shard is not None:
        raise ValueError("--shard is for runs that know nothing of each other: leave out --distributed.")
    try:
        join(given.coordinator, given.processes, given.process, given.local_devices)
    except ValueError as error:
        raise ValueError(
            "--distributed: no scheduler that JAX knows, such as Slurm or Open MPI, says which processes there are: "
            f"give {', '.join(missing) or 'other values'} too, as in --coordinator HOST:PORT --processes 4 --process "
            f"0. ({error})"
        ) from error


def _devices(text: str) -> list[int]:
    """Numbers of GPUs, none for all: as `join` takes them."""
    if text == "all":
        return []
    if all(part.isdecimal() for part in text.split(",")):
        return [int(part) for part in text.split(",")]
    raise argparse.ArgumentTypeError(f"expected all, or numbers of GPUs such as 0,1, got {text!r}")


def _is_file(text: str) -> bool:
    """Whether a reference is a file, or an array in one, rather than a function in a module."""
    path = Path(text.rpartition(":")[0])
    data = [path / name for name in ("zarr.json", ".zgroup", ".zarray")]
    return Path(text).exists() or path.is_file() or any(file.exists() for file in data)


def _terminated(*_: Any) -> None:
    sys.exit(TERMINATED)
