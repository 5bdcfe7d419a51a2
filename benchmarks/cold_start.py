"""How long a command takes from cold, as whole processes; one JSON row for all commands.

`sample` draws for a prompt that was never encoded, `sample_known_prompt` for one that was.
The limits measured in the same run are an interpreter that does nothing and one that imports torch.
The package's compiled modules are kept in a folder of the benchmark's own, as an installation keeps
them after its first run, whatever the environment says of them.

    python benchmarks/cold_start.py [--repeats 5]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import interleaved_ms, print_row

PROMPT = "a red circle above a blue square"


def main() -> None:
    """Time `rectiflow --help` and one picture by `tiny`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats

    def process(*arguments: str, cache: Path | None = None) -> Callable[[], None]:
        def call() -> None:
            env = os.environ | ({"RECTIFLOW_CACHE": str(cache)} if cache else {})
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=env)

        return call

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONDONTWRITEBYTECODE"] = ""
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"
        sample = ("-m", "rectiflow", "sample", "tiny", PROMPT, "--out", folder)
        fresh, kept = Path(folder) / "fresh", Path(folder) / "kept"
        draw = process(*sample, cache=fresh)

        def draw_for_new_prompt() -> None:
            shutil.rmtree(fresh, ignore_errors=True)
            draw()

        calls = {
            "help": process("-m", "rectiflow", "--help"),
            "sample": draw_for_new_prompt,
            "sample_known_prompt": process(*sample, cache=kept),
            "limit_python": process("-c", "pass"),
            "limit_import_torch": process("-c", "import torch"),
        }
        print_row(
            "cold_start", repeats=repeats, ms=interleaved_ms(calls, warm_up=1, repeats=repeats)
        )


if __name__ == "__main__":
    main()
