"""`rectiflow sample MODEL PROMPT`: pictures for a prompt."""

import argparse
from pathlib import Path

from rectiflow.cli.options import Verbs, add_seed, add_verb, whole_number


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "sample",
        run,
        usage="rectiflow sample MODEL PROMPT [-n N] [--seed S] [--out DIR]",
        summary="draw pictures for a prompt",
        details="Picture i has seed S+i, and is the same alone or among others.",
    )
    parser.add_argument("model", metavar="MODEL", help='a run folder, or "tiny"')
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw")
    parser.add_argument(
        "-n", type=whole_number(1), default=1, metavar="N", help="number of pictures (default: 1)"
    )
    add_seed(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("samples"),
        metavar="DIR",
        help="folder of the PNG files (default: samples)",
    )


def run(options: argparse.Namespace) -> None:
    """Draws the pictures and prints where each lies."""
    from rectiflow.generation.folder import sample_to_folder
    from rectiflow.recipes.progress import Counter

    with Counter("pictures") as progress:
        paths = sample_to_folder(
            options.model,
            options.prompt,
            count=options.n,
            seed=options.seed,
            out=options.out,
            progress=progress,
        )
    for path in paths:
        print(path)
