"""Lists of prompts: three kinds of file, and every mistake with its file and line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.prompt_list import PromptEntry, read_prompt_list
from rectiflow.generation.settings import SamplingSettings
from rectiflow.sampling import parse_guidance, parse_solver


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_a_prompt_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.TXT", "\ufeff a ring \r\n\n# not this\na cat, a dog\u2028\n")
    entries = read_prompt_list(path)
    assert [(entry.line, entry.prompt) for entry in entries] == [(1, "a ring"), (4, "a cat, a dog")]
    assert entries[0].place == f"{path}:1"


def test_the_same_list_as_jsonl_and_csv(tmp_path: Path) -> None:
    jsonl = written(
        tmp_path / "a.jsonl",
        '{"prompt": "a ring"}\n\n{"prompt": "# \\"a\\",\\nb", "negative_prompt": "c", "seed": 7, '
        '"n": 2, "steps": 9, "guidance_scale": 3, "height": 32, "width": 48, "solver": "heun", '
        '"grid": "linear", "guidance": "skip-layers:layers=1,2", "shift": 2.5}\n',
    )
    table = written(
        tmp_path / "a.csv",
        "prompt,negative_prompt,seed,n,steps,guidance_scale,height,width,solver,grid,guidance,"
        'shift\na ring,,,,,,,,,,,\n"# ""a"",\nb",c,7,2,9,3,32,48,heun,linear,'
        '"skip-layers:layers=1,2",2.5\n',
    )
    first, second = read_prompt_list(jsonl)
    assert first == PromptEntry(prompt="a ring", line=1, source=str(jsonl))
    assert (second.prompt, second.negative_prompt) == ('# "a",\nb', "c")
    assert (second.seed, second.count, second.line) == (7, 2, 3)
    settings = second.settings(SamplingSettings())
    assert settings == SamplingSettings(
        num_steps=9,
        guidance_scale=3.0,
        height_px=32,
        width_px=48,
        solver=parse_solver("heun"),
        guidance=parse_guidance("skip-layers:layers=1,2"),
        shift=2.5,
    )
    for ours, theirs in zip((first, second), read_prompt_list(table), strict=True):
        assert (ours.prompt, ours.count, ours.seed) == (theirs.prompt, theirs.count, theirs.seed)
        assert ours.settings(settings) == theirs.settings(settings)
    assert read_prompt_list(table)[1].line == 3


def test_files_are_looked_for_from_the_lists_folder(tmp_path: Path) -> None:
    (tmp_path / "a:1.safetensors").touch()
    jsonl = written(
        tmp_path / "a.jsonl",
        '{"prompt": "a", "image": "b.png", "mask": "c/d.png", "strength": 1, "lora": "e:-0.5"}\n'
        f'{{"prompt": "a", "image": "{tmp_path}/b.png", "lora": ["a:1.safetensors", "f:2"]}}\n'
        '{"prompt": "a", "lora": []}\n{"prompt": "a"}\n',
    )
    first, second, third, fourth = read_prompt_list(jsonl)
    assert (first.image, first.mask) == (tmp_path / "b.png", tmp_path / "c" / "d.png")
    assert (first.strength, first.loras) == (1.0, (LoraFile(path=tmp_path / "e", weight=-0.5),))
    assert (second.image, second.mask, second.strength) == (tmp_path / "b.png", None, None)
    assert second.loras == (
        LoraFile(path=tmp_path / "a:1.safetensors"),
        LoraFile(path=tmp_path / "f", weight=2.0),
    )
    assert (third.loras, fourth.loras) == ((), None)
    table = written(
        tmp_path / "a.csv", "prompt,image,mask,strength,lora\na,b.png,c/d.png,1,e:-0.5\na,,,,\n"
    )
    same, empty = read_prompt_list(table)
    assert same == replace(first, line=2, source=str(table))
    assert empty == replace(fourth, line=3, source=str(table))


def test_an_empty_prompt_is_one_where_it_can_be_said(tmp_path: Path) -> None:
    assert read_prompt_list(written(tmp_path / "a.jsonl", '{"prompt": ""}'))[0].prompt == ""
    assert read_prompt_list(written(tmp_path / "a.csv", "prompt,seed\n,4\n"))[0].prompt == ""


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"promt": "a"}', ':2: unknown key "promt"; there are prompt'),
        ("a.jsonl", '{"seed": 1}', ':1: the line lacks "prompt"'),
        ("a.jsonl", '\n{"prompt": "a"', ":2: the line is not JSON"),
        ("a.jsonl", '["a"]', ":1: the line is no JSON object"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', ':1: the line is not JSON .*"prompt" stands'),
        ("a.jsonl", '{"prompt": 3}', ':1: "prompt" is 3; it must be a text in quotes'),
        ("a.jsonl", '{"prompt": "a", "seed": "7"}', ":1: \"seed\" is '7'; it must be a whole"),
        ("a.jsonl", '{"prompt": "a", "steps": 2.5}', ':1: "steps" is 2.5; it must be a whole'),
        ("a.jsonl", '{"prompt": "a", "n": true}', ':1: "n" is True; it must be a whole number'),
        ("a.jsonl", '{"prompt": "a", "n": 0}', ':1: "n" is 0, but at least 1 picture'),
        ("a.jsonl", '{"prompt": "a", "shift": 1' + "0" * 400 + "}", ":1: .*it must be a number"),
        (
            "a.jsonl",
            '{"prompt": "a", "image": ""}',
            ":1: \"image\" is ''; it must be a file's name",
        ),
        ("a.jsonl", '{"prompt": "a", "mask": 1}', ':1: "mask" is 1; it must be a file'),
        (
            "a.jsonl",
            '{"prompt": "a", "strength": "1"}',
            ":1: \"strength\" is '1'; it must be a num",
        ),
        ("a.jsonl", '{"prompt": "a", "lora": [2]}', r':1: "lora" is \[2\]; it must be .*or a list'),
        ("a.jsonl", '{"prompt": "a", "lora": "b:nan"}', ":1: the weight of .*b is nan; give a"),
        ("a.jsonl", '{"prompt": "a", "solver": "rk5"}', ":1: there is no solver 'rk5'; there are"),
        ("a.csv", "", r":1: the first line names the columns \[\]; it needs prompt"),
        ("a.csv", "prompt,prompt\na,b", ":1: the first line names the columns"),
        ("a.csv", "prompt,cfg\na,3", ':1: unknown key "cfg"'),
        ("a.csv", "prompt,seed\na,1\nb", ":3: the line has 1 cells, the first one 2 columns"),
        ("a.csv", "prompt,seed\na,x", ":2: \"seed\" is 'x'; it must be a whole number"),
        ("a.csv", 'prompt,seed\n"a"b,1', ":2: the line is not CSV"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}{told}"):
        read_prompt_list(written(tmp_path / name, text))


def test_files_that_are_no_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a.json is no list of prompts; a list is a .txt, .jsonl"):
        read_prompt_list(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot read .*a.txt: it does not exist"):
        read_prompt_list(tmp_path / "a.txt")
    with pytest.raises(UserError, match="a.txt holds no prompt; write at least one line"):
        read_prompt_list(written(tmp_path / "a.txt", "\n# a\n"))
    (tmp_path / "b.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match=r"b.txt:2: the text is not UTF-8"):
        read_prompt_list(tmp_path / "b.txt")
    assert PromptEntry(prompt="a", line=4).place == "line 4"


def test_brackets_without_end_are_told(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"prompt": "a ring"}\n{"prompt": ' + 100_000 * "[")
    with pytest.raises(UserError, match=r"deep.jsonl.*2.*brackets without end"):
        read_prompt_list(path)
