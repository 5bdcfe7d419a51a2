"""`rectiflow demo`: draws a world, trains a model on it, scores its pictures, writes a report."""

import argparse
from pathlib import Path

from rectiflow.cli.options import Verbs, add_seed, add_verb, positive_number


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "demo",
        run,
        usage="rectiflow demo [--out DIR] [--minutes M] [--seed S]",
        summary="the whole walk: images, training, pictures, scores, report.html",
        details="Needs no GPU and no downloads. A stopped demo goes on when called again.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="result folder (default: demo)",
    )
    parser.add_argument(
        "--minutes",
        type=positive_number,
        default=10.0,
        metavar="M",
        help="training time in minutes (default: 10)",
    )
    add_seed(parser)


def run(options: argparse.Namespace) -> None:
    """Runs the demo; it prints where its report lies."""
    from rectiflow.recipes.demo import run_demo

    run_demo(options.out, minutes=options.minutes, seed=options.seed)
