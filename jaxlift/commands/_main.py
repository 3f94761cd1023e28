"""The command ``jaxlift``: what it does with errors, and which commands there are."""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from collections.abc import Sequence

import jax

from jaxlift.commands import export, info, plot, score, variants
from jaxlift.commands._parser import FAILED, INPUT_OUTPUT, USAGE, Parser, shown, that_goes_on
from jaxlift.scoring import _identity
from jaxlift.scoring._device import CALLED
from jaxlift.scoring._run import KEPT
from jaxlift.scoring._store import StoreError

COMMANDS = (score, info, plot, export, variants)
OUT_OF_MEMORY = (
    "the device is out of memory: begin anew, with --overwrite or another --out, and give --memory less than it has, "
    "such as 4GB, a smaller --batch-size, or fewer references."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """What the command does; returns its exit code."""
    given = _parser().parsed(arguments)
    try:
        with that_goes_on(getattr(given, "model", "")):
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
    print(*map(shown, [*lines, *_kept(error)]), sep="\n", file=sys.stderr)
    return code


def _kept(error: BaseException) -> list[str]:
    """What a run says of what it leaves, if it had begun."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith(KEPT)]


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
    for command in COMMANDS:
        command.add(commands)
    return parser
