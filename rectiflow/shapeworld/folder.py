"""Writes scenes as a plain image folder with captions, as a user's own data would be.

Layout: `images/000000.png` and on; `captions.jsonl` with one line per picture; `world.json` with
the world and the stream that the pictures came from.
"""

import json
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

from PIL import Image

from rectiflow.base.config import to_json
from rectiflow.base.errors import UserError
from rectiflow.base.files import atomic_directory, write_json
from rectiflow.base.seeds import derive_seed
from rectiflow.shapeworld.captions import captions
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import World

_CHUNK = 64
#: As many as `rectiflow encode` decodes.
MAX_PIXELS = 2**26
#: Far more than any folder is good for, and few enough to be listed in memory.
MAX_COUNT = 10_000_000


def choose_task(task_weights: Mapping[str, int], *, split: str, seed: int, index: int) -> str:
    """The task of a place in the stream, each as often as its weight says, by default 1."""
    weights = {task: task_weights.get(task, 1) for task in TASKS}
    ends = [*accumulate(weights.values())]
    drawn = derive_seed(seed, "tasks", split, index) % ends[-1]
    return next(task for task, end in zip(weights, ends, strict=True) if drawn < end)


def _write_chunk(
    worlds: Sequence[World],
    folder: Path,
    split: str,
    seed: int,
    scale: int,
    task_weights: Mapping[str, int],
    indices: range,
) -> list[str]:
    """Write the pictures of some indices; return their caption lines."""
    lines: list[str] = []
    for index in indices:
        world = worlds[index % len(worlds)]
        task = None
        if task_weights:
            task = choose_task(task_weights, split=split, seed=seed, index=index)
        scene = sample_scene(world, split=split, seed=seed, index=index, task=task)
        name = f"images/{index:06d}.png"
        Image.fromarray(render(world, scene, scale=scale)).save(folder / name)
        texts = captions(world, scene, seed=seed, index=index)
        lines.append(json.dumps({"file": name, "caption": texts["terse"], "captions": texts}))
    return lines


def _caption_lines(
    write: Callable[[range], list[str]], chunks: Iterator[range], num_workers: int
) -> Generator[list[str]]:
    if num_workers == 1:
        yield from map(write, chunks)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_leave_signals_to_the_first)
    try:
        yield from pool.map(write, chunks)
    finally:
        # Whoever stops does not wait for all that is still to be drawn.
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_the_first() -> None:
    """A terminal's Ctrl-C goes to all processes, and what the first one did not catch is none's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def write_folder(
    world: World,
    out: Path | str,
    *,
    count: int,
    split: str = "train",
    seed: int = 0,
    scale: int = 1,
    aspects: Sequence[tuple[int, int]] = (),
    task_weights: Mapping[str, int] | None = None,
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `count` scenes without held-out combinations into a new folder.

    The folder appears complete or not at all, and its bytes do not depend on `num_workers`.

    Args:
        world: what may occur.
        out: the folder to make; it must not exist or be empty.
        count: number of pictures, from 1 to `MAX_COUNT`.
        split: "train" or "val".
        seed: names the stream of scenes.
        scale: pixels for each of the world's own, at least 1; the scenes are the same.
        aspects: width to height of the pictures, which take turns; by default all are the world's.
            The shorter side stays, so that objects have the size that they have in squares.
        task_weights: how often each of `TASKS` is drawn beside the others; 1 where none is given,
            0 leaves it out.
        num_workers: processes that draw, at least 1.
        progress: called with (pictures done, pictures in all) now and then.

    Raises:
        UserError: for a count, scale or number of workers out of range, an unknown split or task, a
            negative weight, none above 0, an aspect that does not make whole pixels, pictures of
            more than `MAX_PIXELS`, or a folder that cannot be made.
    """
    for name, number in (("count", count), ("scale", scale), ("num_workers", num_workers)):
        if number < 1:
            raise UserError(f"{name} is {number}; it must be at least 1")
    if count > MAX_COUNT:
        raise UserError(
            f"count is {count:.4g}; a folder gets at most {MAX_COUNT:,} pictures, draw several"
        )
    task_weights = dict(task_weights or {})
    _check_weights(task_weights)
    worlds = [replace(world, aspect=aspect) for aspect in aspects] or [world]
    for one in worlds:
        width, height = (scale * side for side in one.canvas_size_px)
        if width * height > MAX_PIXELS:
            raise UserError(
                f"pictures of {width}×{height} px would have more than {MAX_PIXELS} pixels, which "
                "no later step reads; choose a smaller scale, or less narrow ratios"
            )
    chunks = (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))
    with atomic_directory(out) as folder:
        (folder / "images").mkdir()
        write = partial(_write_chunk, worlds, folder, split, seed, scale, task_weights)
        done = 0
        with (
            (folder / "captions.jsonl").open("w", encoding="utf-8") as file,
            # The workers end before the folder is removed that they write into.
            closing(_caption_lines(write, chunks, num_workers)) as written,
        ):
            for lines in written:
                file.writelines(line + "\n" for line in lines)
                done += len(lines)
                if progress is not None:
                    progress(done, count)
        write_json(
            folder / "world.json",
            {
                "name": world.name,
                "split": split,
                "seed": seed,
                "scale": scale,
                "count": count,
                "world": to_json(world),
            }
            | ({"aspects": [f"{width}:{height}" for width, height in aspects]} if aspects else {})
            | ({"task_weights": task_weights} if task_weights else {}),
        )


def _check_weights(task_weights: Mapping[str, int]) -> None:
    for task, weight in task_weights.items():
        if task not in TASKS:
            raise UserError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
        if weight < 0:
            raise UserError(f"the weight of {task} is {weight}; give a whole number of at least 0")
    if not any(task_weights.get(task, 1) for task in TASKS):
        raise UserError("all tasks have the weight 0, so nothing can be drawn; give one more")
