"""The command ``jaxlift``: what it does with errors, and which commands there are."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import select
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxlift._core.table import MissingRuleError
from jaxlift._version import __version__
from jaxlift.commands import export, info, plot, score, variants, verify
from jaxlift.commands._parser import FAILED, INPUT_OUTPUT, TERMINATED, USAGE, Parser, shown, that_goes_on
from jaxlift.scoring._device import CALLED
from jaxlift.scoring._score import KEPT
from jaxlift.scoring._store import StoreError

COMMANDS = (score, info, verify, plot, export, variants)
OUT_OF_MEMORY = (
    "the device is out of memory: begin anew, with --overwrite or another --out, and give --memory less than it has, "
    "such as 4GB, a smaller --batch-size, or fewer references."
)
EXIT_CODES = """\
exit codes:
    0  done
    2  the command can't be carried out as it stands
   74  the disk is full, a file is damaged, or reading or writing failed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """What the command does; returns its exit code."""
    # Of a request that failed, libraries speak again when they clean up.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    try:
        try:
            return _done(_parser().parsed(arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads what is printed has had enough, as `head` has
        for stream in filter(_is_closed, (sys.stdout, sys.stderr)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python writes what is left when it ends
        return 128 + signal.SIGPIPE


def _is_closed(stream: Any) -> bool:
    """Whether what is written there can't be read any more."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _done(given: Any) -> int:
    try:
        with that_goes_on(getattr(given, "model", "")), _warnings_in_words(given):
            return given.do(given)
    except StoreError as error:
        return _failed(error, error.exit_code, given)
    except (ValueError, TypeError, MissingRuleError, ModuleNotFoundError, FileNotFoundError, MemoryError) as error:
        if _kept(error):  # it came while the run went on: the model's, to be seen with its traceback
            raise
        return _failed(error, USAGE, given)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and any(map(_is_closed, (sys.stdout, sys.stderr))):
            raise
        return _failed(error, INPUT_OUTPUT, given)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _failed(MemoryError(f"{OUT_OF_MEMORY} ({str(error).splitlines()[0]})"), FAILED, given)
    except KeyboardInterrupt as error:
        return _failed(error, 128 + signal.SIGINT, given)
    except SystemExit as error:
        if error.code != TERMINATED or not _kept(error):
            raise
        return _failed(error, TERMINATED, given)


@contextlib.contextmanager
def _warnings_in_words(given: Any) -> Iterator[None]:
    """Say what Python warns of in a line, once, and not where in the code it is."""
    said = set()

    def say(message: Any, *_: Any) -> None:
        text = given.parser.in_options(" ".join(str(message).split()))[0]
        if text not in said and not getattr(given, "quiet", False):
            said.add(text)
            print(shown(f"jaxlift: warning: {text}"), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield


def _failed(error: BaseException, code: int, given: Any) -> int:
    text = "stopped" if isinstance(error, SystemExit) else str(error) or "stopped"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    called = [note for note in getattr(error, "__notes__", ()) if note.startswith(CALLED)]
    target = str(getattr(given, "target", ""))
    if target.endswith(".npy") and text.startswith(("target", "the target", "weights")):
        text = f"--target {target}: {text}"
    if called:  # what the model says itself stays as it is
        lines = [f"jaxlift: the model failed. {type(error).__name__}: {text}", *given.parser.in_options(called[0])]
    else:
        lines = given.parser.in_options(f"jaxlift: {text}")
    print(*map(shown, [*lines, *_kept(error)]), sep="\n", file=sys.stderr)
    return code


def _kept(error: BaseException) -> list[str]:
    """What a run says of what it leaves, if it had begun."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith(KEPT)]


def _parser() -> Parser:
    parser = Parser(
        prog="jaxlift",
        description="DeepLIFT scores of whole data sets.",
        epilog="`jaxlift score --help` has the options of a run, and the exit codes.",
    )
    versions = f"jaxlift {__version__} (jax {jax.__version__}, Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=versions)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    for each in commands.choices.values():
        each.epilog = each.epilog or EXIT_CODES
    return parser
