"""`rectiflow inspect PATH`: what a file or folder of weights is."""

import argparse

from rectiflow.cli.options import Verbs, add_verb

_DETAILS = """\
PATH is a .safetensors file, the folder of a diffusers pipeline or of one of its components, a
folder of split files, or a model of our own. Of released weights only headers are read.
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "inspect",
        run,
        usage="rectiflow inspect PATH",
        summary="say what a file of weights is, its sizes, types, and what is missing",
        details=_DETAILS,
    )
    parser.add_argument("path", metavar="PATH", help="a file or folder of weights")


def run(options: argparse.Namespace) -> None:
    """Prints what is there."""
    from rectiflow.models.published import describe_checkpoint

    print(describe_checkpoint(options.path))
