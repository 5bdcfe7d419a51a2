"""`rectiflow encode FOLDER`: captioned images become a latent store that training reads."""

import argparse
from dataclasses import replace
from pathlib import Path

from rectiflow.cli.options import Verbs, add_verb, whole_number
from rectiflow.cli.released_options import add_released_options, read_load_settings
from rectiflow.generation.load_settings import LoadSettings

_DETAILS = """\
FOLDER holds PNG, JPEG or WebP images with captions.jsonl, captions.csv, or a .txt beside each
image. What cannot be used is listed with its reason in STORE/quarantine.jsonl. Called again, only
what is missing is encoded.

The parts that ship encode, or those of a released model: a file, a folder, or on the Hub. A model
trained on the store is drawn with the same ones, from where they are:
  rectiflow encode FOLDER --out STORE --resolution 256 --parts MODEL --t5-tokens 77 --device cuda
  rectiflow train sd3-d24 --data STORE --out RUN

With --buckets every image keeps its shape as nearly as the given ratios (width:height) allow:
  rectiflow encode FOLDER --out STORE --resolution 128 --buckets 1:1,2:1,1:2
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "encode",
        run,
        usage="rectiflow encode FOLDER --out STORE [--resolution PX] [--buckets W:H,...] "
        "[--features] [--parts MODEL] [--device NAME] "
        "[--workers N]",
        summary="encode captioned images into a latent store, once for all epochs",
        details=_DETAILS,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images and captions")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="STORE", help="store to make or to complete"
    )
    parser.add_argument(
        "--resolution",
        type=whole_number(8),
        default=64,
        metavar="PX",
        help="side of the square that images are cropped and scaled to (default: 64)",
    )
    parser.add_argument(
        "--buckets",
        metavar="W:H,...",
        help="aspect ratios instead of the square, each with about as many pixels",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="also keep the image tower's features, for training with --alignment.weight",
    )
    parser.add_argument(
        "--parts",
        metavar="MODEL",
        help="whose autoencoder and text encoders encode (default: those that ship)",
    )
    parser.add_argument("--device", metavar="NAME", help="where to encode: cpu (default), cuda, …")
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="threads that decode; the store is the same (default: 1, for a GPU up to 16)",
    )
    add_released_options(parser)


def run(options: argparse.Namespace) -> None:
    """Encodes the folder and says what became of its images."""
    from rectiflow.recipes.encoding import encode_with_parts
    from rectiflow.recipes.progress import Counter

    load = read_load_settings(options)
    if options.parts is None and load != LoadSettings():
        options.parser.error(
            "--autoencoder, --text-encoders, --tokenizers, --encoders, --t5-tokens and --precision "
            "are about released parts; say which with --parts MODEL, or leave them out"
        )
    with Counter("pictures and captions") as progress:
        report = encode_with_parts(
            options.folder,
            options.out,
            parts=options.parts,
            load=replace(load, device=options.device),
            resolution_px=options.resolution,
            ratios=options.buckets.split(",") if options.buckets is not None else (),
            with_features=options.features,
            num_workers=options.workers,
            progress=progress,
        )
    print(report)
