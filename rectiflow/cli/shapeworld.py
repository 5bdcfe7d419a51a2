"""`rectiflow shapeworld draw`: pictures of the embedded world as a plain captioned folder."""

import argparse
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rectiflow.cli.options import Verbs, add_seed, add_verb, whole_number

#: Sides of 1024 px, the largest that the paper trains on; what a shape of more takes is kept too.
MAX_SCALE = 16
MAX_WORKERS = 256


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
        "[--split train|val] [--seed S] [--scale N] [--ratios W:H,...] [--tasks TASK=WEIGHT,...] "
        "[--workers N]",
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
    draw.add_argument(
        "--scale",
        type=whole_number(1, MAX_SCALE),
        default=1,
        metavar="N",
        help="pixels for each of the world's own, which has 64 on a side; at most 16 (default: 1)",
    )
    draw.add_argument(
        "--ratios",
        metavar="W:H,...",
        help="aspect ratios that pictures take turns in, such as 1:1,2:1,1:2 (default: squares)",
    )
    draw.add_argument(
        "--tasks",
        type=_task_weights,
        default={},
        metavar="TASK=WEIGHT,...",
        help="how often tasks are drawn beside the others, such as position=3,counting=2 or "
        "typography=0 (default: all alike)",
    )
    draw.add_argument(
        "--workers",
        type=whole_number(1, MAX_WORKERS),
        default=1,
        metavar="N",
        help="processes that draw; the pictures are the same (default: 1)",
    )
    add_seed(draw)


def _task_weights(text: str) -> dict[str, int]:
    pairs = [one.partition("=") for one in text.split(",")]
    try:
        weights = {task.strip(): int(weight) for task, _, weight in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected task=weight, with whole numbers, as in position=3,counting=2, got {text!r}"
        ) from error
    if len(weights) < len(pairs):
        raise argparse.ArgumentTypeError(f"a task is named twice in {text!r}; give each one weight")
    return weights


def run_help(options: argparse.Namespace) -> None:
    """Without an action there is nothing to do but to tell about it."""
    options.parser.print_help()


def run_draw(options: argparse.Namespace) -> None:
    """Draws the folder."""
    from rectiflow.data.buckets import parse_ratio
    from rectiflow.recipes.progress import Counter
    from rectiflow.shapeworld.folder import write_folder
    from rectiflow.shapeworld.world import world_by_name

    ratios = options.ratios.split(",") if options.ratios is not None else []
    with _ended_as_by_an_interruption(), Counter("pictures") as progress:
        write_folder(
            world_by_name(options.world),
            options.out,
            count=options.count,
            split=options.split,
            seed=options.seed,
            scale=options.scale,
            aspects=[parse_ratio(text) for text in ratios],
            task_weights=options.tasks,
            num_workers=options.workers,
            progress=progress,
        )
    print(f"{options.count} pictures with captions in {options.out}")


@contextmanager
def _ended_as_by_an_interruption() -> Generator[None]:
    """SIGTERM ends the block as Ctrl-C does, which leaves no half-drawn folder."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
