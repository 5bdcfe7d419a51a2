"""The gates of the embedded benchmark: clean and spoilt pictures pass, wrong prompts never."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from rectiflow.shapeworld.captions import Metadata, captions, parse_caption, prompt_metadata
from rectiflow.shapeworld.reading import Reading
from rectiflow.shapeworld.scene import RELATIONS, TASKS, Scene
from rectiflow.shapeworld.scoring import score
from rectiflow.shapeworld.world import World

NUM_CLEAN = 2000
NUM_SPOILT = 500

Picture = NDArray[np.uint8]


def blurred(image: Picture) -> Picture:
    return np.rint(ndimage.gaussian_filter(image.astype(float), (0.8, 0.8, 0))).astype(np.uint8)


def noisy(image: Picture) -> Picture:
    rng = np.random.default_rng(int(image.sum()))
    return np.clip(np.rint(image + rng.normal(0, 16, image.shape)), 0, 255).astype(np.uint8)


def tinted(image: Picture) -> Picture:
    rng = np.random.default_rng(int(image.sum()))
    return np.clip(np.rint(image + rng.uniform(-10, 10, 3)), 0, 255).astype(np.uint8)


def differences(scene: Scene, reading: Reading, tolerance_px: float) -> list[str]:
    """Say where a reading is not the scene."""
    found = [(one.shape, one.color) for one in reading.objects]
    wanted = [(item.shape, item.color) for item in scene.items]
    if sorted(found) != sorted(wanted) or reading.unknown:
        return [f"expected {wanted}, read {found} and {reading.num_unknown} unknown"]
    away: list[str] = []
    for item in scene.items:
        offsets = [
            np.abs(np.subtract(one.center_px, item.center_px)).max()
            for one in reading.objects
            if (one.shape, one.color) == (item.shape, item.color)
        ]
        if min(offsets) > tolerance_px:
            away.append(f"{item} is {min(offsets)} px away")
    if (scene.word is None) != (reading.word is None):
        return [*away, f"expected {scene.word}, read {reading.word}"]
    if scene.word is not None and reading.word is not None:
        same = (scene.word.text, scene.word.color) == (reading.word.text, reading.word.color)
        off = np.abs(np.subtract(scene.word.center_px, reading.word.center_px)).max()
        if not same or off > tolerance_px:
            away.append(f"expected {scene.word}, read {reading.word}")
    return away


def copy_of(record: Metadata) -> Metadata:
    return json.loads(json.dumps(record))


def one_edit(world: World, scene: Scene, rng: np.random.Generator) -> Iterator[Metadata]:
    """Prompts that differ from the scene's own in one thing, and are wrong for its picture."""
    right = prompt_metadata(world, scene)

    def other(choices: Any, *taken: Any) -> Any:
        left = [choice for choice in choices if choice not in taken]
        return left[rng.integers(len(left))]

    if scene.word is not None:
        text, place = scene.word.text, int(rng.integers(len(scene.word.text)))
        wrong = copy_of(right)
        assert "word" in wrong
        wrong["word"]["text"] = text[:place] + other(world.letters, text[place]) + text[place + 1 :]
        yield wrong
        wrong = copy_of(right)
        assert "word" in wrong
        wrong["word"]["color"] = other(world.colors, scene.word.color)
        yield wrong
        return
    shapes = [item.shape for item in scene.items]
    for place in range(len(right["include"])):
        wrong = copy_of(right)
        wrong["include"][place]["class"] = other(world.shapes, *shapes)
        yield wrong
        if "color" in right["include"][place]:
            wrong = copy_of(right)
            wrong["include"][place]["color"] = other(world.colors, right["include"][place]["color"])
            yield wrong
    if scene.task == "color_attr":
        wrong = copy_of(right)
        first, second = wrong["include"]
        first["color"], second["color"] = second["color"], first["color"]
        yield wrong
    if scene.task == "position":
        wrong = copy_of(right)
        relation = wrong["include"][1]["position"][0]
        wrong["include"][1]["position"] = [other(RELATIONS, relation), 0]
        yield wrong
    if scene.task == "counting":
        for step in (-1, 1):
            wrong = copy_of(right)
            for clause in [*wrong["include"], *wrong.get("exclude", ())]:
                clause["count"] += step
            yield wrong


@pytest.mark.parametrize("task", TASKS)
def test_clean_pictures_are_read_exactly_and_wrong_prompts_never_accepted(
    gallery: Any, task: str
) -> None:
    """Both gates in one test: reading the pictures is what takes time."""
    rng = np.random.default_rng(0)
    for index, scene in enumerate(gallery.scenes(task, NUM_CLEAN)):
        reading = gallery.read(scene)
        assert not differences(scene, reading, tolerance_px=0.75)
        texts = captions(gallery.world, scene, seed=0, index=index)
        text = texts["terse" if index % 2 else "full"]
        verdict = score(gallery.world, reading, parse_caption(gallery.world, text))
        assert verdict.strict, (text, verdict.reason)
        prompts = list(one_edit(gallery.world, scene, rng))
        wrong = prompts[index % len(prompts)]
        verdict = score(gallery.world, reading, wrong)
        assert not verdict.correct, (scene, wrong)
        assert verdict.graded < 1.0
        assert verdict.reason


@pytest.mark.parametrize("change", [blurred, noisy])
@pytest.mark.parametrize("task", TASKS)
def test_spoilt_pictures_pass(
    gallery: Any, task: str, change: Callable[[Picture], Picture]
) -> None:
    passed = [
        not differences(scene, gallery.read_changed(scene, change), tolerance_px=1.5)
        for scene in gallery.scenes(task, NUM_SPOILT // (2 if task == "typography" else 1))
    ]
    assert np.mean(passed) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("change", [blurred, noisy, tinted])
@pytest.mark.parametrize("task", TASKS)
def test_many_spoilt_pictures_pass(
    gallery: Any, task: str, change: Callable[[Picture], Picture]
) -> None:
    passed = [
        not differences(scene, gallery.read_changed(scene, change), tolerance_px=1.5)
        for scene in gallery.scenes(task, 10 * NUM_SPOILT)
    ]
    assert np.mean(passed) >= 0.99
