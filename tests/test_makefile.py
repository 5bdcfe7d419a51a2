"""`make bench` ends at the first benchmark that fails, and keeps the rows before it."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = """\
#!/bin/sh
case "$1" in *failing*) exit 3;; esac
echo "{}"
"""


def test_a_failing_benchmark_ends_make_bench(tmp_path: Path) -> None:
    results = tmp_path / "benchmarks" / "results"
    python = tmp_path / "venv" / "bin" / "python"
    for folder in (results, python.parent):
        folder.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    # An environment that is up to date, so that nothing is installed.
    stamps = [tmp_path / "venv" / ".python", tmp_path / "pyproject.toml"]
    stamps += [tmp_path / "constraints.txt", tmp_path / "venv" / ".dev"]
    for age_s, stamp in zip((300, 200, 200, 100), stamps):
        stamp.touch()
        made_at = stamp.stat().st_mtime - age_s
        os.utime(stamp, (made_at, made_at))
    chosen = "BENCHMARKS=first failing later"
    done = subprocess.run(
        ["make", "-f", ROOT / "Makefile", "VENV=venv", chosen, "bench"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode, done.stdout
    assert "Error 3" in done.stderr
    assert (results / "first.jsonl").read_text() == "{}\n"
    assert not (results / "later.jsonl").exists()
