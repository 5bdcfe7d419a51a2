"""`rectiflow runs`: lists training runs, or compares some of them."""

import argparse
from pathlib import Path

from rectiflow.base.errors import UserError
from rectiflow.cli.options import Verbs, add_verb

_DETAILS = """\
  rectiflow runs [FOLDER]                     the runs in a folder (default: this one), latest first
  rectiflow runs compare RUN RUN ...          what differs, what came out, and a page with curves

States: running, finished, stopped (the same train command continues it), diverged. Losses are the
last held-out ones with their standard errors. A folder of the name compare is given as ./compare.
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "runs",
        run,
        usage="rectiflow runs [FOLDER] | rectiflow runs compare RUN RUN ... [--out FILE.html]",
        summary="list training runs, or compare them",
        details=_DETAILS,
    )
    parser.add_argument("words", nargs="*", metavar="FOLDER", help="where the runs are")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="the page (default: comparison.html)"
    )


def run(options: argparse.Namespace) -> None:
    """Prints the list or the comparison."""
    if options.words[:1] == ["compare"]:
        from rectiflow.evaluation.run_comparison import compare_runs

        page = options.out or Path("comparison.html")
        print(compare_runs([Path(word) for word in options.words[1:]], page))
        print(f"\ncurves: {page.resolve()}")
        return
    if len(options.words) > 1:
        raise UserError(
            f"runs lists one folder, got {len(options.words)}; to compare runs: rectiflow runs "
            "compare RUN RUN ..."
        )
    if options.out is not None:
        raise UserError("--out is the page of rectiflow runs compare; a list has none")
    from rectiflow.evaluation.runs import list_runs

    print(list_runs(Path(options.words[0] if options.words else ".")))
