"""`rectiflow evaluate MODEL`: draws a benchmark's prompts, reads the pictures back, scores them."""

import argparse
from pathlib import Path

from rectiflow.cli.options import Verbs, add_verb, whole_number

_DETAILS = """\
Prints a table of scores per task, on seen and on held-out combinations, with 95 % intervals.
--out keeps all of it, picture by picture, as JSON.
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "evaluate",
        run,
        usage="rectiflow evaluate MODEL [--benchmark shapeworld] [--per-task N] [--out FILE.json]",
        summary="score a model on a benchmark",
        details=_DETAILS,
    )
    parser.add_argument("model", metavar="MODEL", help='a run folder, or "tiny"')
    parser.add_argument(
        "--benchmark", choices=("shapeworld",), default="shapeworld", help="(default: shapeworld)"
    )
    parser.add_argument(
        "--per-task",
        type=whole_number(1),
        default=50,
        metavar="N",
        help="prompts for each task and split (default: 50)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to keep the result")


def run(options: argparse.Namespace) -> None:
    """Evaluates the model, prints the table, keeps the result when asked to."""
    from rectiflow.base.files import refuse_unwritable

    if options.out is not None:
        refuse_unwritable(options.out)

    from rectiflow.evaluation.results import format_table, write_evaluation
    from rectiflow.evaluation.shapeworld import evaluate
    from rectiflow.generation.model import load_model
    from rectiflow.recipes.progress import Counter

    with Counter("pictures") as progress:
        evaluation = evaluate(
            load_model(options.model), per_task=options.per_task, progress=progress
        )
    if options.out is not None:
        write_evaluation(options.out, evaluation)
    print(format_table(evaluation))
