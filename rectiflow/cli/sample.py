"""`rectiflow sample MODEL PROMPT`: pictures for a prompt."""

import argparse
from pathlib import Path

from rectiflow.cli.options import Verbs, add_seed, add_verb, positive_number, whole_number

_DETAILS = """\
Picture i has seed S+i, and is the same alone or among others. How it is sampled is the model's own
way unless told otherwise:
  --solver    euler, heun, midpoint, rk4, dpm++2m, dormand-prince:tolerance=1e-3
  --grid      linear, released, training-times, dynamic
  --guidance  cfg, zero-star, apg, auto:weaker=MODEL, skip-layers:layers=7,8,9,
              perturb-attention:layers=5, none; around them, or around cfg:
              interval:low=0.2,high=0.9, rescale:amount=0.7, as in zero-star+rescale
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "sample",
        run,
        usage="rectiflow sample MODEL PROMPT [-n N] [--seed S] [--out DIR] [--steps N] ...",
        summary="draw pictures for a prompt",
        details=_DETAILS,
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

    sampling = parser.add_argument_group("sampling")
    for option, kind, metavar, about in (
        ("--steps", whole_number(1, 1000), "N", "number of steps"),
        ("--guidance-scale", float, "X", "how strongly to guide; 1 is not at all"),
        ("--shift", positive_number, "X", "shift of the grid towards noise; 1 is none"),
        ("--solver", str, "NAME", "how a step is made"),
        ("--grid", str, "NAME", "where steps end"),
        ("--guidance", str, "NAME", "how the prompt is stressed"),
    ):
        sampling.add_argument(option, type=kind, metavar=metavar, help=about)


def run(options: argparse.Namespace) -> None:
    """Draws the pictures and prints where each lies."""
    from dataclasses import replace

    from rectiflow.generation.folder import refuse_file, sample_to_folder
    from rectiflow.generation.model import load_model
    from rectiflow.recipes.progress import Counter
    from rectiflow.sampling import parse_grid, parse_guidance, parse_solver

    changes = {
        name: parse(given)
        for name, given, parse in (
            ("num_steps", options.steps, int),
            ("guidance_scale", options.guidance_scale, float),
            ("shift", options.shift, float),
            ("solver", options.solver, parse_solver),
            ("grid", options.grid, parse_grid),
            ("guidance", options.guidance, parse_guidance),
        )
        if given is not None
    }
    refuse_file(options.out)
    model = load_model(options.model)
    settings = replace(model.settings, **changes)
    with Counter("pictures") as progress:
        paths = sample_to_folder(
            model,
            options.prompt,
            count=options.n,
            seed=options.seed,
            out=options.out,
            settings=settings,
            progress=progress,
        )
    for path in paths:
        print(path)
