"""The text that other tools read: written and read back, whatever the prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectiflow.generation.editing import EditReference, PictureReference
from rectiflow.generation.load_settings import LoadedLora
from rectiflow.generation.metadata import ModelReference, PictureMetadata
from rectiflow.generation.parameters_text import (
    NEGATIVE,
    ParametersText,
    parameters_of,
    parse_parameters,
)
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.variations import Variation
from rectiflow.sampling import parse_grid, parse_guidance, parse_solver

ABOUT = PictureMetadata(
    prompt="a red circle, above a blue square",
    negative_prompt="a ring",
    seed=7,
    settings=SamplingSettings(width_px=96),
    model=ModelReference(name="runs/mine", sha256="0123456789abcdef" * 4),
    rectiflow="0.1.0",
)

# Characters that the form itself uses, above all.
prompts = (
    st.text(st.one_of(st.sampled_from(',:"\\\n '), st.characters(exclude_categories=["Cs"])))
    .map(lambda text: text.replace("\0", "").strip())
    .filter(lambda text: not any(line.startswith(NEGATIVE) for line in text.split("\n")))
)
keys = st.from_regex(r"[A-Za-z][A-Za-z0-9 \-/]*[A-Za-z0-9]", fullmatch=True)
values = st.text(st.one_of(st.sampled_from(',:"\\\n '), st.characters(exclude_categories=["Cs"])))


def test_the_form_is_the_usual_one() -> None:
    assert str(parameters_of(ABOUT)) == (
        "a red circle, above a blue square\n"
        "Negative prompt: a ring\n"
        "Steps: 28, Sampler: Euler, CFG scale: 4.0, Seed: 7, Size: 96x64, "
        "Model hash: 0123456789, Model: mine, Version: rectiflow 0.1.0"
    )


def test_edits_variations_and_loras_are_told_as_others_tell_them() -> None:
    picture = PictureReference(name="a.png", sha256="ab" * 32)
    style = LoadedLora(name="my, style.safetensors", sha256="cd" * 32, weight=0.5)
    text = str(
        parameters_of(
            replace(
                ABOUT,
                edit=EditReference(source=picture, strength=0.5, mask=picture),
                variation=Variation(seed=5, amount=0.25),
                loras=(style, replace(style, name="b", weight=-1.0)),
            )
        )
    )
    assert text.startswith(f"{ABOUT.prompt} <lora:my style:0.5> <lora:b:-1>\n")
    found = parse_parameters(text).values
    assert list(found.items())[-7:-1] == [
        ("Denoising strength", "0.5"),
        ("Init image hash", "ab" * 5),
        ("Mask hash", "ab" * 5),
        ("Variation seed", "5"),
        ("Variation seed strength", "0.25"),
        ("Lora hashes", f"my style: {'cd' * 5}, b: {'cd' * 5}"),
    ]


@given(prompt=prompts, negative=prompts)
def test_prompts_come_back(prompt: str, negative: str) -> None:
    text = parameters_of(replace(ABOUT, prompt=prompt, negative_prompt=negative))
    found = parse_parameters(str(text))
    assert (found.prompt, found.negative_prompt) == (prompt, negative)
    assert found.values == text.values


@given(
    values=st.dictionaries(
        keys, values.map(lambda text: text.replace("\0", "")), min_size=3, max_size=6
    )
)
def test_values_come_back(values: dict[str, str]) -> None:
    assert parse_parameters(str(ParametersText(prompt="a", values=values))).values == values


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse_parameters(text)


def test_our_own_names_stand_where_others_have_none() -> None:
    settings = SamplingSettings(
        solver=parse_solver("dormand-prince:tolerance=0.1"),
        grid=parse_grid("released"),
        guidance=parse_guidance("skip-layers:layers=1,2"),
        shift=3.0,
    )
    values = parse_parameters(str(parameters_of(replace(ABOUT, settings=settings)))).values
    assert parse_solver(values["Sampler"]) == settings.solver
    assert parse_grid(values["Schedule type"]) == settings.grid
    assert parse_guidance(values["Guidance"]) == settings.guidance
    assert values["Shift"] == "3.0"


def test_zero_bytes_do_not_stand_in_a_png() -> None:
    assert "\0" not in str(parameters_of(replace(ABOUT, prompt="a\0b")))


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "values"),
    [
        ("a cat", "a cat", "", {}),
        ("a cat\nwith: a hat", "a cat\nwith: a hat", "", {}),
        ("\nNegative prompt: a dog\nSteps: 2, Seed: 3, Size: 1x1\n", "", "a dog", {"Size": "1x1"}),
        (
            'a\nb\nNegative prompt: c\nd\nSteps: 20, Lora hashes: "x: 1, y: 2", Sampler: Euler a',
            "a\nb",
            "c\nd",
            {"Lora hashes": "x: 1, y: 2", "Sampler": "Euler a"},
        ),
        ('a\nSteps: 1, Bad: "\\q", Seed: 3', "a", "", {"Bad": '"\\q"'}),
    ],
)
def test_texts_of_other_tools(
    text: str, prompt: str, negative: str, values: dict[str, str]
) -> None:
    found = parse_parameters(text)
    assert (found.prompt, found.negative_prompt) == (prompt, negative)
    assert values.items() <= dict(found.values).items()
