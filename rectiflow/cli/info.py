"""`rectiflow info PICTURE`: how a picture was made."""

import argparse

from rectiflow.cli.options import Verbs, add_verb

_DETAILS = """\
Tells what the file says of itself: prompts, seed, settings, model, and where it was drawn. Of
pictures from other tools it tells what their text "parameters" holds.
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "info",
        run,
        usage="rectiflow info PICTURE",
        summary="say how a picture was made",
        details=_DETAILS,
    )
    parser.add_argument("picture", metavar="PICTURE", help="a PNG file")


def run(options: argparse.Namespace) -> None:
    """Prints what the picture tells."""
    from rectiflow.generation.description import describe_picture

    print(describe_picture(options.picture))
