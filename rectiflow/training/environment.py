"""Where a run was made: versions, commit, processor, threads; written to `environment.json`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import rectiflow

_PACKAGES = ("torch", "numpy", "safetensors", "transformers")


def describe_environment() -> dict[str, Any]:
    """Facts about this process that could explain a difference between two runs."""
    return {
        "rectiflow": rectiflow.__version__,
        "commit": source_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def source_commit() -> str | None:
    """The commit that the package's source is checked out at, "-dirty" added when it has edits.

    None for an installed package, or without git.
    """
    folder = Path(rectiflow.__file__).parent
    # An installed package may lie inside an unrelated repository, which does not track it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    is_dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no", "--", "."))
    return commit + ("-dirty" if is_dirty else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
