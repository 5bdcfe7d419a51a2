"""`python -m rectiflow.recipes.parts PART --out DIR`: make a frozen part anew."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rectiflow.base.errors import UserError


def main() -> int:
    """Make one part; prints a line now and then."""
    parser = argparse.ArgumentParser(prog="python -m rectiflow.recipes.parts", description=__doc__)
    parser.add_argument("part", choices=("text", "autoencoder", "model"))
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--run", type=Path, help="for model: the finished run to ship")
    parser.add_argument(
        "--start", type=Path, help="for autoencoder: what its first stage made, to skip that stage"
    )
    arguments = parser.parse_args()
    if (arguments.run is None) == (arguments.part == "model"):
        parser.error("--run goes with model, and only with it")
    if arguments.start is not None and arguments.part != "autoencoder":
        parser.error("--start goes with autoencoder only")
    start = time.monotonic()

    def show(fields: dict[str, float]) -> None:
        shown = "  ".join(f"{key} {value:.4g}" for key, value in fields.items())
        print(f"{time.monotonic() - start:7.1f} s  {shown}", flush=True)

    try:
        if arguments.part == "text":
            from rectiflow.recipes.parts.text import TextPartRecipe, make_text_part

            make_text_part(TextPartRecipe(), arguments.out, show)
        elif arguments.part == "model":
            from rectiflow.recipes.parts.finished import make_model

            make_model(arguments.run, arguments.out, show)
        else:
            from rectiflow.recipes.parts.autoencoder import make_autoencoder

            make_autoencoder(arguments.out, show, start=arguments.start)
    except UserError as error:
        print(f"rectiflow: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
