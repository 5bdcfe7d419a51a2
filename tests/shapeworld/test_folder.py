"""A written folder is what a user's own data would be, and appears whole or not at all."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rectiflow.base.config import from_json
from rectiflow.base.errors import UserError
from rectiflow.data.curation import Curation
from rectiflow.data.folder import list_folder, load_sample
from rectiflow.data.records import CuratedSample, RawSample
from rectiflow.shapeworld.captions import captions
from rectiflow.shapeworld.folder import MAX_COUNT, MAX_PIXELS, choose_task, write_folder
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import SMALL, World


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_folder_holds_the_scenes(tmp_path: Path, world: World) -> None:
    seen: list[tuple[int, int]] = []
    write_folder(
        world, tmp_path / "a", count=70, split="val", seed=3, progress=lambda *at: seen.append(at)
    )
    lines = (tmp_path / "a" / "captions.jsonl").read_text().splitlines()
    assert len(lines) == 70
    for index, line in enumerate(map(json.loads, lines)):
        scene = sample_scene(world, split="val", seed=3, index=index)
        assert line["file"] == f"images/{index:06d}.png"
        assert line["captions"] == captions(world, scene, seed=3, index=index)
        assert line["caption"] == line["captions"]["terse"]
        picture = np.asarray(Image.open(tmp_path / "a" / line["file"]))
        np.testing.assert_array_equal(picture, render(world, scene))
    about = json.loads((tmp_path / "a" / "world.json").read_text())
    assert (about["name"], about["split"], about["seed"], about["count"]) == (
        world.name,
        "val",
        3,
        70,
    )
    assert from_json(World, about["world"]) == world
    assert seen == [(64, 70), (70, 70)]


def test_a_scale_enlarges_the_same_scenes(tmp_path: Path) -> None:
    write_folder(SMALL, tmp_path / "a", count=3, scale=2)
    write_folder(SMALL, tmp_path / "b", count=3)
    small, large = contents(tmp_path / "b"), contents(tmp_path / "a")
    assert large["captions.jsonl"] == small["captions.jsonl"]
    assert json.loads(large["world.json"])["scale"] == 2
    for index in range(3):
        picture = np.asarray(Image.open(tmp_path / "a" / f"images/{index:06d}.png"))
        scene = sample_scene(SMALL, split="train", seed=0, index=index)
        np.testing.assert_array_equal(picture, render(SMALL, scene, scale=2))


def test_tasks_are_drawn_as_often_as_their_weights_say(tmp_path: Path) -> None:
    weights = {"position": 4, "typography": 0}
    chosen = [choose_task(weights, split="train", seed=1, index=i) for i in range(9000)]
    counts = Counter(chosen)
    assert set(counts) == set(TASKS) - {"typography"}
    # Five tasks of weight 1 and one of 4: 1,000 each beside 4,000, with some five deviations.
    assert all(abs(counts[t] - 1000 * weights.get(t, 1)) < 250 for t in counts)
    write_folder(SMALL, tmp_path / "a", count=5, seed=1, task_weights=weights)
    lines = (tmp_path / "a" / "captions.jsonl").read_text().splitlines()
    for i, line in enumerate(lines):
        scene = sample_scene(SMALL, split="train", seed=1, index=i, task=chosen[i])
        assert json.loads(line)["captions"] == captions(SMALL, scene, seed=1, index=i)
    assert json.loads((tmp_path / "a" / "world.json").read_text())["task_weights"] == weights


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"posture": 2}, "unknown task 'posture'; choose one of single_object"),
        ({"position": -1}, "the weight of position is -1"),
        (dict.fromkeys(TASKS, 0), "all tasks have the weight 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(
    tmp_path: Path, weights: dict[str, int], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        write_folder(SMALL, tmp_path / "out", count=1, task_weights=weights)
    assert not (tmp_path / "out").exists()


def test_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    for number in (1, 2):
        write_folder(SMALL, tmp_path / str(number), count=130, num_workers=number)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("count", [MAX_COUNT + 1, 10**30])
def test_counts_beyond_any_folder_are_refused_at_once(tmp_path: Path, count: int) -> None:
    with pytest.raises(UserError, match=r"a folder gets at most 10,000,000 pictures, draw several"):
        write_folder(SMALL, tmp_path / "out", count=count)
    assert not list(tmp_path.iterdir())


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="the folder is not empty"):
        write_folder(SMALL, tmp_path, count=1)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 1, "num_workers": 0}, {"count": 1, "scale": 0}]
)
def test_numbers_below_one_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="is 0; it must be at least 1"):
        write_folder(SMALL, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_nothing_is_left_after_an_interruption(tmp_path: Path, num_workers: int) -> None:
    """And it comes at once: so many pictures would take minutes."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(SMALL, tmp_path / "out", count=500_000, num_workers=num_workers, progress=stop)
    assert not list(tmp_path.iterdir())


def test_aspects_take_turns(tmp_path: Path) -> None:
    aspects = [(1, 1), (2, 1), (1, 2)]
    write_folder(SMALL, tmp_path / "a", count=6, scale=2, aspects=aspects)
    lines = (tmp_path / "a" / "captions.jsonl").read_text().splitlines()
    for index, line in enumerate(map(json.loads, lines)):
        own = replace(SMALL, aspect=aspects[index % 3])
        width, height = own.canvas_size_px
        picture = np.asarray(Image.open(tmp_path / "a" / line["file"]))
        assert picture.shape == (2 * height, 2 * width, 3)
        scene = sample_scene(own, split="train", seed=0, index=index)
        np.testing.assert_array_equal(picture, render(own, scene, scale=2))
        assert line["captions"] == captions(own, scene, seed=0, index=index)
    about = json.loads((tmp_path / "a" / "world.json").read_text())
    assert about["aspects"] == ["1:1", "2:1", "1:2"]
    assert from_json(World, about["world"]) == SMALL


def test_an_aspect_of_no_whole_pixels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the aspect 7:3 does not make whole pixels of a canvas"):
        write_folder(SMALL, tmp_path / "a", count=1, aspects=[(7, 3)])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("aspects", "scale"), [([(1, 100_000)], 1), ([], 200)])
def test_pictures_that_nothing_reads_are_refused_at_once(
    aspects: list[tuple[int, int]], scale: int, tmp_path: Path
) -> None:
    # What encoding decodes, which is in a room that this one does not see.
    assert Curation(resolution_px=64).max_pixels == MAX_PIXELS
    with pytest.raises(UserError, match="would have more than 67108864 pixels"):
        write_folder(SMALL, tmp_path / "out", count=1, aspects=aspects, scale=scale)
    assert not (tmp_path / "out").exists()


def test_what_is_drawn_can_be_encoded(tmp_path: Path) -> None:
    write_folder(SMALL, tmp_path, count=3, aspects=[(1, 1), (2, 1)])
    listing = list_folder(tmp_path)
    assert (len(listing.entries), listing.rejections, listing.world) == (3, (), SMALL.name)
    curation = Curation(resolution_px=64)
    for entry in listing.entries:
        sample = load_sample(tmp_path, entry)
        assert isinstance(sample, RawSample)
        curated = curation.apply(sample)
        assert isinstance(curated, CuratedSample)
        assert curated.pixels.shape == (64, 64, 3)
