"""Perfect pictures score 1, swapped ones 0, and all that a score depends on is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import tiny_model

from rectiflow.base.errors import UserError
from rectiflow.evaluation import shapeworld
from rectiflow.evaluation.results import (
    JudgedPicture,
    format_table,
    read_evaluation,
    write_evaluation,
)
from rectiflow.evaluation.shapeworld import (
    describe_reading,
    evaluate,
    judge,
    picture_seeds,
    summarize,
)
from rectiflow.generation.model import Model
from rectiflow.generation.pictures import read_metadata, read_png
from rectiflow.shapeworld.benchmark import HELD_OUT_TASKS, BenchmarkPrompt, benchmark_prompts
from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, Item, Scene, Word
from rectiflow.shapeworld.world import FULL, SMALL


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(num_steps=1)


def _scene_of(prompt: BenchmarkPrompt) -> Scene:
    """A scene that a prompt asks for, in a row or a column of the canvas."""
    word = prompt.metadata.get("word")
    if word is not None:
        text = Word(text=word["text"], color=word.get("color", "red"), center_px=(32, 32))
        return Scene(task=prompt.task, items=(), word=text)
    places = [(16, 16), (48, 48), (16, 48), (48, 16)]
    relation = ""
    for clause in prompt.metadata["include"]:
        relation = clause.get("position", ("", 0))[0] or relation
    if relation:
        # The relation belongs to the second clause: where its object is, seen from the first.
        offset = {"left of": (-16, 0), "right of": (16, 0), "above": (0, -16), "below": (0, 16)}
        dx, dy = offset[relation]
        places = [(32 - dx, 32 - dy), (32 + dx, 32 + dy)]
    items: list[Item] = []
    for clause in prompt.metadata["include"]:
        for _ in range(clause["count"]):
            color = clause.get("color", SMALL.colors[0])
            center = tuple(map(float, places[len(items)]))
            items.append(Item(shape=clause["class"], color=color, center_px=center, radius_px=10.5))
    return Scene(task=prompt.task, items=tuple(items))


def _perfect(prompts: Sequence[BenchmarkPrompt]) -> NDArray[np.uint8]:
    return np.stack([render(SMALL, _scene_of(prompt)) for prompt in prompts])


def test_perfect_pictures_score_one_and_empty_ones_zero(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [
        prompt
        for held_out in (False, True)
        for prompt in benchmark_prompts(SMALL, per_task=4, held_out=held_out)
    ]
    monkeypatch.setattr(shapeworld, "generate", lambda *_, **__: _perfect(prompts))
    evaluation = evaluate(model, per_task=4)
    assert [p.reason for p in evaluation.pictures if not p.is_correct] == []
    assert evaluation.overall.seen.lenient.mean == evaluation.overall.seen.graded.mean == 1.0
    assert evaluation.overall.unseen is not None
    assert evaluation.overall.unseen.lenient.mean == 1.0
    assert evaluation.overall.seen.lenient.low < 1.0
    blank = np.full((len(prompts), 64, 64, 3), 128, np.uint8)
    monkeypatch.setattr(shapeworld, "generate", lambda *_, **__: blank)
    empty = evaluate(model, per_task=4)
    assert empty.overall.seen.lenient.mean == empty.overall.seen.graded.mean == 0.0
    assert empty.overall.seen.lenient.high > 0.0


def test_overall_is_the_mean_of_the_tasks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perfect for the first task alone: a seventh, however many pictures each task has."""
    prompts = [
        prompt
        for held_out in (False, True)
        for prompt in benchmark_prompts(SMALL, per_task=3, held_out=held_out)
    ]
    images = _perfect(prompts)
    for image, prompt in zip(images, prompts):
        if prompt.task != TASKS[0]:
            image[:] = 128
    monkeypatch.setattr(shapeworld, "generate", lambda *_, **__: images)
    evaluation = evaluate(model, per_task=3)
    assert evaluation.overall.seen.lenient.mean == pytest.approx(1 / 7)
    assert evaluation.tasks[TASKS[0]].seen.lenient.mean == 1.0
    assert evaluation.tasks[TASKS[0]].unseen is None
    assert {t for t, scores in evaluation.tasks.items() if scores.unseen} == set(HELD_OUT_TASKS)


def test_the_result_survives_its_file_with_all_that_it_depends_on(
    model: Model, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    evaluation = evaluate(
        model,
        per_task=2,
        pictures_per_prompt=2,
        seed=3,
        keep_in=tmp_path / "kept",
        progress=lambda *counts: seen.append(counts),
    )
    write_evaluation(tmp_path / "e.json", evaluation)
    assert read_evaluation(tmp_path / "e.json") == evaluation
    assert (evaluation.world, evaluation.prompt_form, evaluation.seed) == ("small", "terse", 3)
    assert evaluation.settings == model.settings
    assert len(evaluation.pictures) == 2 * 2 * (7 + 6) == seen[-1][1]
    assert evaluation.overall.seen.num_pictures == 28
    assert evaluation.overall.seen.num_prompts == 14
    first = evaluation.pictures[0]
    about = read_metadata(tmp_path / "kept" / str(first.file))
    assert (about["prompt"], about["seed"]) == (first.prompt, first.seed)
    reading = Oracle(SMALL).read(read_png(tmp_path / "kept" / str(first.file)))
    assert describe_reading(reading) == first.read
    table = format_table(evaluation)
    assert "overall (unseen)" in table
    assert "guidance 3" in table
    assert "2 picture(s) a prompt" in table


def test_fewer_prompts_are_the_first_of_more() -> None:
    few = benchmark_prompts(SMALL, per_task=2, held_out=True)
    many = benchmark_prompts(SMALL, per_task=5, held_out=True)
    seeds = picture_seeds(many, seed=0)
    first = [i for start in range(0, len(many), 5) for i in (start, start + 1)]
    assert [many[i] for i in first] == few
    assert [seeds[i] for i in first] == picture_seeds(few, seed=0)
    assert len(set(seeds)) == len(many)


def test_same_call_same_scores(model: Model) -> None:
    first, again = (evaluate(model, per_task=1) for _ in range(2))
    assert replace(first, duration_s=0.0) == replace(again, duration_s=0.0)


def test_readings_in_words() -> None:
    def item(shape: str, color: str, x: float, y: float) -> Item:
        return Item(shape=shape, color=color, center_px=(x, y), radius_px=10.5)

    def read(**parts: Any) -> str:
        scene = Scene(task="counting", **parts)
        return describe_reading(Oracle(SMALL).read(render(SMALL, scene)))

    red = SMALL.colors[0]
    crosses = (item("cross", red, 16, 16), item("cross", red, 48, 16))
    assert read(items=crosses) == f"2 {red} crosses"
    word = Word(text=SMALL.words[-1], color=red, center_px=(32, 32))
    assert read(items=(), word=word) == f'the word "{word.text}" in {red}'
    assert read(items=()) == ""


def test_verdicts_follow_the_pictures() -> None:
    prompts = benchmark_prompts(SMALL, per_task=2, held_out=False)
    images = _perfect(prompts)
    swapped = images.reshape(-1, 2, *images.shape[1:])[:, ::-1].reshape(images.shape)
    judged = judge(SMALL, prompts, [0] * len(prompts), swapped)
    assert not any(picture.is_correct for picture in judged)
    assert all(picture.reason and 0.0 <= picture.graded < 1.0 for picture in judged)


def test_intervals_are_over_pictures_where_a_task_has_no_other_prompts() -> None:
    def judged(num_prompts: int, num_pictures: int) -> list[JudgedPicture]:
        # A prompt succeeds always or never.
        return [
            JudgedPicture(
                task="two_object",
                is_held_out=False,
                prompt=f"{number % num_prompts}",
                seed=number,
                is_correct=bool(number % num_prompts % 2),
                is_strict=False,
                graded=0.5,
                reason="",
                read="",
                file=None,
            )
            for number in range(num_pictures)
        ]

    def width(pictures: Sequence[JudgedPicture], pictures_per_prompt: int) -> float:
        overall, _ = summarize(pictures, pictures_per_prompt=pictures_per_prompt)
        assert overall.seen.lenient.mean == 0.5
        return overall.seen.lenient.high - overall.seen.lenient.low

    # As wide as a hundred independent verdicts, whatever number of prompts they are of; but four
    # pictures of each of many prompts that succeed and fail together are 25 verdicts.
    hundred, again, few = width(judged(100, 100), 1), width(judged(2, 100), 1), judged(26, 104)
    assert again == pytest.approx(hundred, rel=0.1)
    assert width(few, 4) == pytest.approx(2 * hundred, rel=0.1)


def test_refuses_what_cannot_be_scored(model: Model) -> None:
    with pytest.raises(UserError, match="per_task is 0; give a number of at least 1"):
        evaluate(model, per_task=0)
    with pytest.raises(UserError, match="was not trained on an embedded world"):
        evaluate(replace(model, world=None))
    wide = replace(model.settings, width_px=128)
    with pytest.raises(UserError, match=r"128×64 px cannot be read back.*squares of 64 px"):
        evaluate(model, settings=wide)
    assert evaluate(replace(model, world=None), per_task=1, world=FULL).world == "full"
