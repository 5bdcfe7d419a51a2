"""Train, be killed, go on: prints as JSON how each killed run differs from one never killed.

A program of its own: it loads torch once and forks a fresh child per session, which is cheap as
long as the parent itself never computes. Usage: kill_and_resume.py FOLDER
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.utils.tensorboard
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.training.loop import train

# float32, because a fresh process needs a good while to compile bfloat16 kernels.
RECIPE = tiny_recipe(
    max_steps=11, log_every=2, validate_every=4, checkpoint_every=3, precision="fp32"
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_call(module: Any, name: str, number: int, *, half_written: bool = False) -> None:
    """Make the `number`-th call of a function the process's last act."""
    original = getattr(module, name)
    calls = 0

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            if half_written:
                original(*arguments, **keywords)
                path = Path(arguments[1])
                os.truncate(path, path.stat().st_size // 2)
            die()
        return original(*arguments, **keywords)

    setattr(module, name, counted)


def session(run: Path, prepare: Callable[[], None], *, kill_after_s: float | None = None) -> bool:
    """One process training `run`; True if it came to its end."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        prepare()
        try:
            train(RECIPE, FakeFeed(), run, progress=False)
        except BaseException as error:
            print(f"{run.name}: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"training failed in {run}")
    return not os.WIFSIGNALED(status)


def contents(run: Path) -> dict[str, Any]:
    """What must not depend on interruptions: every file's content less times and the commit."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not path.is_file() or name.startswith("tensorboard/"):
            continue
        if path.name == "metrics.jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name in ("state.json", "model.json", "step.json"):
            found[name] = timeless(json.loads(path.read_text()))
        elif path.name not in ("environment.json", ".lock"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def timeless(value: Any) -> Any:
    outer = {"time", "elapsed_s", "images_per_second", "training_s", "commit", "usage"}
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in outer}
    return value


def main(folder: Path) -> None:
    started = time.monotonic()
    undisturbed = folder / "undisturbed"
    assert session(undisturbed, lambda: None)
    duration_s = time.monotonic() - started
    expected = contents(undisturbed)
    scenarios: dict[str, list[Callable[[], None]]] = {
        # A run saves at steps 3, 6, 9 and 11, three tensor files and a model each time.
        "half a tensor file": [
            partial(kill_at_call, safetensors.torch, "save_file", 6, half_written=True),
            partial(kill_at_call, safetensors.torch, "save_file", 3, half_written=True),
        ],
        "before the rename": [partial(kill_at_call, os, "replace", n) for n in (3, 5)],
        "while syncing": [partial(kill_at_call, os, "fsync", n) for n in (5, 9, 17)],
    }
    results: dict[str, Any] = {"duration_s": duration_s, "runs": {}}
    for name, deaths in scenarios.items():
        run = folder / name
        num_kills = sum(not session(run, death) for death in deaths)
        while not session(run, lambda: None):
            pass
        results["runs"][name] = report(run, expected, num_kills)
    for seed in range(2):
        run, rng, num_kills = folder / f"random time {seed}", random.Random(seed), 0
        while num_kills < 2 and not session(
            run, lambda: None, kill_after_s=rng.uniform(0.2, 0.6) * duration_s
        ):
            num_kills += 1
        assert session(run, lambda: None)
        results["runs"][run.name] = report(run, expected, num_kills)
    print(json.dumps(results))


def report(run: Path, expected: dict[str, Any], num_kills: int) -> dict[str, Any]:
    found = contents(run)
    return {
        "num_kills": num_kills,
        "differing": [k for k in expected | found if expected.get(k) != found.get(k)],
        "num_compared": len(expected),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
