"""How long a command takes from cold, as whole processes; one JSON row for each command.

The limits measured in the same run are an interpreter that does nothing and one that imports torch.

    python benchmarks/cold_start.py [--repeats 5]
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable

from measure import interleaved_ms, print_row

PROMPT = "a red circle above a blue square"


def main() -> None:
    """Time `rectiflow --help` and one picture by `tiny`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats

    def process(*arguments: str) -> Callable[[], None]:
        def call() -> None:
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

        return call

    with tempfile.TemporaryDirectory() as out:
        calls = {
            "help": process("-m", "rectiflow", "--help"),
            "sample": process("-m", "rectiflow", "sample", "tiny", PROMPT, "--out", out),
            "limit_python": process("-c", "pass"),
            "limit_import_torch": process("-c", "import torch"),
        }
        print_row(
            "cold_start", repeats=repeats, ms=interleaved_ms(calls, warm_up=1, repeats=repeats)
        )


if __name__ == "__main__":
    main()
