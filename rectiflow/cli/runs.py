"""`rectiflow runs`: lists training runs, compares some, or makes a model of another average."""

import argparse
from pathlib import Path

from rectiflow.base.errors import UserError
from rectiflow.cli.options import Verbs, add_verb, positive_number

_DETAILS = """\
  rectiflow runs [FOLDER]                     the runs in a folder (default: this one), latest first
  rectiflow runs compare RUN RUN ...          what differs, what came out, and a page with curves
  rectiflow runs average RUN --sigma-rel X --out MODEL
                                              a model of an average of another length, from those
                                              that the run has kept (--ema.sigma-rels)

States: running, finished, stopped (the same train command continues it), diverged. Losses are the
last held-out ones with their standard errors. A folder of such a name is given as ./compare.
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "runs",
        run,
        usage="rectiflow runs [FOLDER] | rectiflow runs compare RUN RUN ... [--out FILE.html] | "
        "rectiflow runs average RUN --sigma-rel X --out MODEL",
        summary="list training runs, compare them, or average one anew",
        details=_DETAILS,
    )
    parser.add_argument("words", nargs="*", metavar="FOLDER", help="where the runs are")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the page (default: comparison.html), or the new folder of the model",
    )
    parser.add_argument(
        "--sigma-rel",
        type=positive_number,
        metavar="X",
        help="length of the average relative to the run's, such as 0.1",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the list or the comparison, or makes the model."""
    if options.words[:1] == ["average"]:
        _average(options)
        return
    if options.sigma_rel is not None:
        raise UserError("--sigma-rel is of rectiflow runs average RUN")
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


def _average(options: argparse.Namespace) -> None:
    if len(options.words) != 2 or options.sigma_rel is None or options.out is None:
        raise UserError(
            "an average needs one run, its length and a place: rectiflow runs average RUN "
            "--sigma-rel 0.1 --out MODEL"
        )
    from rectiflow.training.post_hoc import average_run

    made = average_run(options.words[1], options.sigma_rel, options.out)
    print(
        f"{made.model}: the average with sigma_rel {options.sigma_rel:g} at step {made.step:,}, of "
        f"{made.num_kept} that were kept; its weights over the steps are {made.error:.2%} off"
    )
