"""Shape and type checks on the whole package, one thread a process, no network.

The import hook wraps every annotated function of `rectiflow`. Compiled graphs cannot see through
the wrappers, so tests of `torch.compile` run their source in a fresh interpreter, by `run_python`.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# As for the command line (`rectiflow.cli.main.command`): what was imported is seldom garbage.
gc.set_threshold(100_000)

import pytest
import type_checking

type_checking.install("rectiflow")

import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What tests cache stays among themselves."""
    os.environ["RECTIFLOW_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python source or `-m` arguments in a fresh interpreter, without the checks.

    `run_python("print(1)")` runs source, `run_python("-m", "rectiflow", "--help")` a command line.
    """

    def run(*arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        command = ["-c", *arguments] if len(arguments) == 1 else list(arguments)
        return subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
