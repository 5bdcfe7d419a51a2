"""`rectiflow shapeworld draw`: pictures of the embedded world as a plain captioned folder."""

import argparse
from pathlib import Path

from rectiflow.cli.options import Verbs, add_seed, add_verb, whole_number


def add_parser(verbs: Verbs) -> None:
    """Adds the verb and its only action, `draw`."""
    parser = add_verb(
        verbs,
        "shapeworld",
        run_help,
        usage="rectiflow shapeworld draw --count N --out DIR [...]",
        summary="draw the embedded world as an image folder with captions",
    )
    actions = parser.add_subparsers(metavar="draw", prog="rectiflow shapeworld")
    draw = add_verb(
        actions,
        "draw",
        run_draw,
        usage="rectiflow shapeworld draw --count N --out DIR [--world small|full] "
        "[--split train|val] [--seed S]",
        summary="draw N captioned pictures into a new folder, as a user's own data would be",
    )
    draw.add_argument("--count", type=whole_number(1), required=True, metavar="N", help="pictures")
    draw.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to make; must be new or empty",
    )
    draw.add_argument(
        "--world",
        choices=("small", "full"),
        default="small",
        help="what may occur (default: small)",
    )
    draw.add_argument(
        "--split",
        choices=("train", "val"),
        default="train",
        help="stream of scenes (default: train)",
    )
    add_seed(draw)


def run_help(options: argparse.Namespace) -> None:
    """Without an action there is nothing to do but to tell about it."""
    options.parser.print_help()


def run_draw(options: argparse.Namespace) -> None:
    """Draws the folder."""
    from rectiflow.recipes.progress import Counter
    from rectiflow.shapeworld.folder import write_folder
    from rectiflow.shapeworld.world import world_by_name

    with Counter("pictures") as progress:
        write_folder(
            world_by_name(options.world),
            options.out,
            count=options.count,
            split=options.split,
            seed=options.seed,
            progress=progress,
        )
    print(f"{options.count} pictures with captions in {options.out}")
