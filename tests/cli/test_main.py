"""The command line answers fast, and every mistake is one line that says what is allowed."""

import contextlib
import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rectiflow import __version__
from rectiflow.base.errors import UserError
from rectiflow.cli import demo
from rectiflow.cli.main import VERBS, main

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "dmo",
            "unknown command 'dmo'; the commands: demo, shapeworld, encode, plan, tra",
        ),
        ("--quiet demo", "unknown option '--quiet'; before a command: --help, --version"),
        (
            "demo --minuts 3",
            "rectiflow demo does not know '--minuts'; its options: --help, --o",
        ),
        ("demo --minute 3", "rectiflow demo does not know '--minute'"),
        ("demo --minutes 0", "argument --minutes: expected a number above 0, got '0'"),
        ("demo --minutes nan", "argument --minutes: expected a number above 0, got 'nan'"),
        ("demo --minutes soon", "argument --minutes: expected a number above 0, got 'soon'"),
        (
            "demo --seed -1",
            "argument --seed: expected a whole number from 0 to 922337203685",
        ),
        ("demo --seed 9223372036854775808", "argument --seed: expected a whole number from 0"),
        ("shapeworld paint", "invalid choice: 'paint'"),
        ("shapeworld draw --out x", "the following arguments are required: --count"),
        ("shapeworld draw --count 3", "the following arguments are required: --out"),
        ("shapeworld draw --count 1.5 --out x", "--count: expected a whole number of at least 1"),
        ("shapeworld draw --count 3 --out x --world big", "--world: invalid choice: 'big'"),
        ("shapeworld draw --count 3 --out x --split test", "--split: invalid choice: 'test'"),
        (
            "shapeworld draw --count 3 --out x --scale 100000",
            "argument --scale: expected a whole number from 1 to 16, got '100000'",
        ),
        ("encode", "the following arguments are required: FOLDER, --out"),
        ("train", "train needs RECIPE; usage: rectiflow train RECIPE --data STORE --out RUN"),
        (
            "train --foo --data x --out y",
            "train does not know '--foo' without a RECIPE, whose fields are options too; usage:",
        ),
        ("train demo", "train needs --data; usage: rectiflow train"),
        ("train demo --data store", "train needs --out; usage: rectiflow train"),
        ("train demo --data s --out r --max-steps 0", "--max-steps: expected a whole number of"),
        ("plan", "the following arguments are required: RECIPE"),
        ("runs nowhere", "cannot list the runs of nowhere: it does not exist; give a folder"),
        ("runs compare", "0 run(s) to compare: none; give two or more different ones"),
        ("sample tiny", "the following arguments are required: PROMPT"),
        ("sample tiny cat -n 0", "argument -n: expected a whole number of at least 1, got '0'"),
        ("sample tiny cat dog", "rectiflow sample does not know 'dog'; its options: --help, -n"),
        ("sample", "the following arguments are required: MODEL, PROMPT"),
        ("sample --prompts a.txt", "the following arguments are required: MODEL (see"),
        ("sample tiny --prompts a.json", "a.json is no list of prompts; a list is a .txt, .jsonl"),
        ("sample tiny cat --prompts a.txt", "both --prompts and the prompt 'cat' were given"),
        ("sample tiny cat a --prompts a.txt", "rectiflow sample does not know 'cat'; its options"),
        ("sample tiny cat --stepz 3", "rectiflow sample does not know '--stepz'; its options"),
        ("sample --replay a.png --steps 3 -n 2", "leave out -n, --steps (a model that lies"),
        ("sample tiny --replay a.png", "--replay takes model, prompt and settings from the pic"),
        ("sample --replay a.png", "cannot read a.png: it does not exist"),
        ("info", "the following arguments are required: PICTURE"),
        ("info nowhere.png", "cannot read nowhere.png: it does not exist"),
        ("evaluate tiny --benchmark coco", "--benchmark: invalid choice: 'coco'"),
        ("inspect", "the following arguments are required: PATH"),
        ("inspect nowhere.safetensors", "cannot read nowhere.safetensors: it does not exist"),
        ("convert tiny", "the following arguments are required: TARGET"),
        ("evaluate tiny --per-task many", "--per-task: expected a whole number of at least 1"),
    ],
)
def test_a_mistake_is_one_line(
    line: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("rectiflow: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [[], *([verb.__name__.rpartition(".")[2]] for verb in VERBS)])
def test_help_needs_no_torch(verb: list[str], run_python: Run) -> None:
    source = f"""
import sys
from rectiflow.cli.main import main
try:
    main({[*verb, "--help"]!r})
except SystemExit as left:
    assert left.code == 0
heavy = sorted(set(sys.modules) & {{"torch", "numpy", "tyro", "transformers", "PIL"}})
assert not heavy, heavy
"""
    result = run_python(source)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: rectiflow")
    assert ("--seed" in result.stdout) == (
        verb in (["demo"], ["evaluate"], ["finetune"], ["sample"])
    )


def test_usages_are_the_promised_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    promised = {
        "demo": "rectiflow demo [--out DIR] [--minutes M] [--seed S]",
        "shapeworld draw": "rectiflow shapeworld draw --count N --out DIR [--world small|full] "
        "[--split train|val] [--seed S]",
        "encode": "rectiflow encode FOLDER --out STORE",
        "train": "rectiflow train RECIPE --data STORE --out RUN [--max-steps N]",
        "finetune": "rectiflow finetune MODEL --data DIR --out RUN [--lora RANK] [--max-steps N] "
        "[--learning-rate X] [--batch-size B] [--resolution PX] "
        "[--prior DIR | --prior-prompt TEXT --prior-count N] [--sample-prompt TEXT ...] [--seed S]",
        "sample": "rectiflow sample MODEL PROMPT [-n N] [--seed S] [--out DIR]",
        "evaluate": "rectiflow evaluate MODEL [--benchmark shapeworld] [--per-task N] "
        "[--out FILE.json]",
        "info": "rectiflow info PICTURE",
        "plan": "rectiflow plan RECIPE [--devices 8xH100] [--price-per-hour X]",
        "runs": "rectiflow runs [FOLDER] | rectiflow runs compare RUN RUN ... [--out FILE.html] | "
        "rectiflow runs average RUN --sigma-rel X --out MODEL",
        "inspect": "rectiflow inspect PATH",
        "convert": "rectiflow convert SOURCE TARGET",
    }
    for verb, usage in promised.items():
        with contextlib.suppress(SystemExit):
            main([*verb.split(), "--help"])
        assert f"usage: {usage}" in " ".join(capsys.readouterr().out.split())


def test_without_arguments_it_tells_about_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out
    assert main(["shapeworld"]) == 0
    assert "draw" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rectiflow {__version__}\n"


def raises(error: BaseException) -> Callable[..., None]:
    def run_demo(*_: object, **__: object) -> None:
        raise error

    return run_demo


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Runs `rectiflow demo` whose work raises an error; returns the exit code."""

    def run(error: BaseException) -> int:
        monkeypatch.setattr(demo, "run", raises(error))
        return main(["demo"])

    return run


def test_user_errors_stay_on_one_line(
    ends_with: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(UserError("two\nlines")) == 2
    assert capsys.readouterr().err == "rectiflow: error: two lines\n"


def test_interruption(
    ends_with: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "rectiflow: interrupted\n"


def test_a_full_disk_anywhere_is_told(
    ends_with: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(OSError(errno.ENOSPC, "No space left on device", "a/b")) == 2
    assert "cannot use a/b: no space left on the disk" in capsys.readouterr().err
    assert ends_with(OSError(errno.EACCES, "Permission denied")) == 2
    assert "cannot use the output: no permission" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["evaluate {}", "sample {} cat", "info {}", "inspect {}"])
def test_a_name_too_long_for_the_file_system_is_one_line(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.format("x" * 300).split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the name is too long; choose a shorter one" in err


def test_defects_keep_their_traceback(ends_with: Callable[[BaseException], int]) -> None:
    with pytest.raises(FileNotFoundError):
        ends_with(FileNotFoundError(errno.ENOENT, "No such file", "a"))
    with pytest.raises(ZeroDivisionError):
        ends_with(ZeroDivisionError())


def test_a_reader_that_leaves_is_no_error() -> None:
    """`rectiflow ... | head` closes the pipe before everything is written."""
    source = """
import sys
from rectiflow.cli import demo
from rectiflow.cli.main import main
def run(options):
    for _ in range(100_000):
        print("line")
demo.run = run
sys.exit(main(["demo"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_the_module_and_the_command_are_the_same(run_python: Run) -> None:
    result = run_python("-m", "rectiflow", "dmo")
    assert result.returncode == 2
    assert result.stderr.startswith("rectiflow: error: unknown command 'dmo'")


def test_a_terminal_without_a_sign_shows_its_number() -> None:
    source = """
import sys
from rectiflow.cli import demo
from rectiflow.cli.main import command
demo.run = lambda options: print("a × b")
sys.argv = ["rectiflow", "demo"]
sys.exit(command())
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
    )
    assert (done.returncode, done.stdout) == (0, "a \\xd7 b\n"), done.stderr


def test_every_verb_has_its_own_file() -> None:
    folder = Path(importlib.import_module("rectiflow.cli").__path__[0])
    assert {verb.__name__.rpartition(".")[2] for verb in VERBS} <= {
        path.stem for path in folder.glob("*.py")
    }
