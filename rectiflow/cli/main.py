"""Entry of the command line: finds the verb, turns what a user can fix into one line on stderr.

Exit codes: 0 done, 2 something to fix in the call or its files, 130 interrupted, 141 the reader of
the output has gone, 143 ended by SIGTERM. A defect of the program keeps its traceback and exit code
1, which is also that of a replay whose picture differs.
"""

import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Sequence

from rectiflow import __version__
from rectiflow.base.errors import UserError
from rectiflow.cli import (
    convert,
    demo,
    encode,
    evaluate,
    finetune,
    info,
    inspect,
    plan,
    runs,
    sample,
    shapeworld,
    study,
    train,
)
from rectiflow.cli.options import Parser

VERBS = (
    demo,
    shapeworld,
    encode,
    plan,
    train,
    finetune,
    runs,
    sample,
    info,
    evaluate,
    study,
    inspect,
    convert,
)

_DESCRIPTION = """\
Stable Diffusion 3 as one straight walk: captioned images become a model, captions become pictures.

  rectiflow demo                                   the whole walk, small, with a report at its end
  rectiflow sample tiny "a red circle above a blue square"         pictures from the shipped model
"""

# System states that a user can fix; any other OSError is a defect and keeps its traceback.
_FIXABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
)

#: Objects between two searches for unreachable cycles. Python's 700 make importing torch and
#: transformers a tenth slower; the cycles of this many objects are a few megabytes.
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


def build_parser() -> Parser:
    """The parser of the whole command line; each verb adds its own."""
    parser = Parser(
        prog="rectiflow",
        description=_DESCRIPTION,
        epilog="rectiflow COMMAND --help tells about one command.",
    )
    parser.add_argument("--version", action="version", version=f"rectiflow {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands")
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def command() -> int:
    """The command line as a process of its own: `main`, with little time spent on garbage."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A terminal without a sign shows its number, which is better than a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main()
    finally:
        # The interpreter's last search through all that was ever imported takes most of a second.
        gc.freeze()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return code
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("rectiflow: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Python flushes stdout once more on leaving: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _FIXABLE:
            raise
        from rectiflow.base.files import explain_os_error

        return _complain(str(explain_os_error(error, error.filename or "the output", "use")))


def _run(arguments: list[str]) -> int:
    parser = build_parser()
    _refuse_unknown_verb(arguments)
    options, rest = parser.parse_known_args(arguments)
    if options.verb is None:
        parser.print_help()
        return 0
    if rest and not options.takes_overrides:
        options.parser.refuse(rest[0])
    options.overrides = rest
    if getattr(options, "deterministic", False):  # of the verbs that have it
        from rectiflow.models.determinism import compute_deterministically

        compute_deterministically()
    return options.run(options) or 0


def _refuse_unknown_verb(arguments: list[str]) -> None:
    """Tells about an unknown command by itself: argparse would call it an invalid choice."""
    names = [verb.__name__.rpartition(".")[2] for verb in VERBS]
    first = arguments[0] if arguments else names[0]
    if first.startswith("-"):
        if first not in ("-h", "--help", "--version"):
            raise UserError(f"unknown option {first!r}; before a command: --help, --version")
    elif first not in names:
        raise UserError(f"unknown command {first!r}; the commands: {', '.join(names)}")


def _complain(text: str) -> int:
    print("rectiflow: error: " + " ".join(text.splitlines()), file=sys.stderr)
    return 2
