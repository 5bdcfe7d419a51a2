"""`rectiflow study NAME`: runs an experiment of the paper as a grid, and writes what it found."""

import argparse
from pathlib import Path
from shlex import quote

from rectiflow.cli.options import Verbs, add_verb, whole_number

SCALES = ("smoke", "cpu", "gpu")
_DETAILS = """\
Studies: formulations, backbones, qk-norm, autoencoder-channels, captions, encoders, scaling, shift.

Stopped at any moment, the same call goes on; finished runs are never repeated. The same call in
another terminal shares the work. The report lies in DIR/experiments/DATE_NAME/README.md, with all
raw metrics beside it. Scales: smoke takes seconds and shows that it works, cpu fits two cores, gpu
is sized for about an hour of one large GPU, for which give --device cuda.
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "study",
        run,
        usage="rectiflow study NAME --out DIR [--scale smoke|cpu|gpu] [--workers N] "
        "[--device NAME]",
        summary="run an experiment of the paper: grid, tables, plots, verdict",
        details=_DETAILS,
    )
    parser.add_argument("study", metavar="NAME", help="which experiment, see above")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the study's folder")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="where models are trained and drawn with: cpu (default), cuda, …",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="processes that share the runs, each with its part of the cores (default: 1)",
    )


def run(options: argparse.Namespace) -> None:
    """Runs the study; prints where its report lies."""
    from rectiflow.studies.engine import run_study
    from rectiflow.studies.registry import study

    device = "" if options.device == "cpu" else f" --device {options.device}"
    path = run_study(
        study(options.study, options.scale),
        options.out,
        command=f"rectiflow study {options.study} --scale {options.scale} --out "
        f"{quote(str(options.out))} --workers {options.workers}{device}",
        device=options.device,
        num_workers=options.workers,
    )
    print(f"the report: {path / 'README.md'}")
