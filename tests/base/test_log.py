"""Logs survive being cut and are honest about numbers that JSON lacks."""

import json
import math
from pathlib import Path

import pytest

from rectiflow.base.errors import UserError
from rectiflow.base.log import EventLog, read_events


def test_events_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "log.jsonl"
    with EventLog(path) as log:
        log.write("step", step=1, loss=0.5)
        assert len(read_events(path)) == 1  # flushed before the next line
        log.write("note", text="två\nrader")
    with EventLog(path) as log:
        log.write("step", step=2, loss=0.25)
    assert [event["kind"] for event in read_events(path)] == ["step", "note", "step"]
    assert [event["loss"] for event in read_events(path, "step")] == [0.5, 0.25]
    assert read_events(path, "note")[0]["text"] == "två\nrader"


def test_non_finite_numbers_are_spelt_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with EventLog(path) as log:
        log.write("step", values=[math.nan, (math.inf, {"low": -math.inf}), 1.0])
    line = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert line["values"] == ["nan", ["inf", {"low": "-inf"}], 1.0]


@pytest.mark.parametrize("cut", ['{"kind": "st', "x" * 200_000])
def test_a_cut_last_line_is_left_out_and_then_removed(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "log.jsonl"
    with EventLog(path) as log:
        log.write("step", step=1)
    with path.open("a") as file:
        file.write(cut)
    assert [event["step"] for event in read_events(path)] == [1]
    with EventLog(path) as log:
        log.write("step", step=2)
    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_a_file_of_one_cut_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind')
    EventLog(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "text"),
    [("nonsense", "not JSON"), ("[" * 100_000, "not JSON"), ("[1]", "no JSON object")],
)
def test_damage_in_the_middle_is_an_error(tmp_path: Path, line: str, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"kind": "a"}}\n{line}\n{{"kind": "b"}}\n')
    with pytest.raises(UserError, match=rf"log\.jsonl: line 2 is {text}.*remove that line"):
        read_events(path)


def test_unusable_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the log .*: it is a folder"):
        EventLog(tmp_path)
    with pytest.raises(UserError, match="cannot read the log .*absent: it does not exist"):
        read_events(tmp_path / "absent")


def test_a_full_disk_is_told() -> None:
    with pytest.raises(UserError, match="cannot write the log /dev/full: no space left"):
        EventLog("/dev/full").write("step")
