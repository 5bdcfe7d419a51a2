"""`rectiflow convert SOURCE TARGET`: weights from one layout into another, bit for bit."""

import argparse
from pathlib import Path

from rectiflow.cli.options import Verbs, add_verb

_DETAILS = """\
SOURCE is whatever `rectiflow inspect` knows. A TARGET that ends in .safetensors becomes a single
file in Stability AI's layout, any other the folder of a diffusers pipeline, with tokenizers where
SOURCE is such a folder, and scheduler where it has one. Values are copied as they are, whatever
their type, a few megabytes at a time.
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "convert",
        run,
        usage="rectiflow convert SOURCE TARGET",
        summary="copy a model's weights into another layout, bit for bit",
        details=_DETAILS,
    )
    parser.add_argument("source", metavar="SOURCE", help="a file or folder of weights")
    parser.add_argument("target", type=Path, metavar="TARGET", help="file or folder to write")


def run(options: argparse.Namespace) -> None:
    """Converts, and says which parts were written and what was left out."""
    from rectiflow.models.published import convert
    from rectiflow.models.published.checkpoint import PART_TITLES

    source = convert(options.source, options.target)
    print(f"{options.target}: {', '.join(PART_TITLES[kind] for kind in source.parts)}")
    for kind, reason in source.missing.items():
        print(f"left out: {PART_TITLES[kind]}, as {reason}")
    if source.unknown:
        print(f"left out: {len(source.unknown)} tensors of no part, such as {source.unknown[0]}")
