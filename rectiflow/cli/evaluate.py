"""`rectiflow evaluate MODEL`: draws a benchmark's prompts, reads the pictures back, scores them."""

import argparse
from pathlib import Path

from rectiflow.cli.drawing_options import (
    SAMPLING_DETAILS,
    add_drawing_options,
    open_changed_model,
    read_settings,
)
from rectiflow.cli.options import Verbs, add_verb, whole_number

_DETAILS = f"""\
Prints a table of scores per task, on seen and on held-out combinations, with 95 % intervals.
--out keeps all of it, picture by picture, as JSON, with how the pictures were drawn.

{SAMPLING_DETAILS}"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "evaluate",
        run,
        usage="rectiflow evaluate MODEL [--benchmark shapeworld] [--per-task N] "
        "[--out FILE.json] [--world small|full] [--seed S] [--steps N] ...",
        summary="score a model on a benchmark",
        details=_DETAILS,
    )
    parser.add_argument("model", metavar="MODEL", help='a run folder, "tiny" or "tiny-mmdit"')
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
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="S", help="of the pictures (default: 0)"
    )
    parser.add_argument(
        "--world",
        choices=("small", "full"),
        help="whose prompts are drawn and read back (default: what the model was trained on)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to keep the result")
    add_drawing_options(parser)


def run(options: argparse.Namespace) -> None:
    """Evaluates the model, prints the table, keeps the result when asked to."""
    from rectiflow.base.files import refuse_unwritable

    if options.out is not None:
        refuse_unwritable(options.out)

    from dataclasses import replace

    from rectiflow.evaluation.results import format_table, write_evaluation
    from rectiflow.evaluation.shapeworld import evaluate
    from rectiflow.recipes.progress import Counter
    from rectiflow.shapeworld.world import world_by_name

    changes, model = read_settings(options), open_changed_model(options, options.model)
    with Counter("pictures") as progress:
        evaluation = evaluate(
            model,
            per_task=options.per_task,
            seed=options.seed,
            settings=replace(model.settings, **changes),
            world=world_by_name(options.world) if options.world else None,
            progress=progress,
        )
    if options.out is not None:
        write_evaluation(options.out, evaluation)
    print(format_table(evaluation))
