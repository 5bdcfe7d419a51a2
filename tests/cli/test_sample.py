"""`rectiflow sample` and `evaluate`: with a model of random weights, and with one that is none."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from generation.tiny_edits import lora_file, mask, save, source
from tiny_model import tiny_model

from rectiflow.base.config import from_json
from rectiflow.cli.main import main
from rectiflow.evaluation.results import read_evaluation
from rectiflow.generation import folder, replay
from rectiflow.generation import model as model_files
from rectiflow.generation.edit_files import read_edit
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.loras import with_loras
from rectiflow.generation.metadata import PictureMetadata
from rectiflow.generation.pictures import read_metadata, read_png, save_png
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import generate
from rectiflow.generation.variations import Variation
from rectiflow.sampling import ReleasedGrid, parse_guidance, parse_solver
from rectiflow.shapeworld.scene import TASKS


@pytest.mark.parametrize("verb", [["sample", "MODEL", "a red circle"], ["evaluate", "MODEL"]])
def test_no_model_is_one_line(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    for name, message in (
        ("absent", 'there is no model .*give "tiny", "tiny-mmdit", the folder of a run'),
        ("empty", "holds no weights: neither .safetensors files, nor the folders"),
        ("run", "has no model yet"),
    ):
        line = [str(tmp_path / name) if word == "MODEL" else word for word in verb]
        out = str(tmp_path / "out" / "scores.json")
        assert main([*line, "--out", out]) == 2
        err = capsys.readouterr().err
        assert err.startswith("rectiflow: error: ")
        assert err.count("\n") == 1
        assert re.search(message, err)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def random_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name means a small model of random weights."""
    model = tiny_model()
    for module in (folder, model_files, replay):
        monkeypatch.setattr(module, "load_model", lambda *_: model)
    monkeypatch.setattr(model_files, "_load_weaker", lambda *_: model)


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_pictures_are_saved_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pictures"
    line = ["sample", "any", "a red circle", "-n", "2", "--seed", "7", "--out", str(out)]
    assert main(line) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(out.iterdir()) == sorted(paths)
    about = [read_metadata(path) for path in paths]
    assert [each["seed"] for each in about] == [7, 8]
    assert {each["prompt"] for each in about} == {"a red circle"}
    before = [path.read_bytes() for path in paths]
    assert main(line) == 0
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
@pytest.mark.parametrize(
    ("solver", "guidance"),
    [
        ("heun", "interval:low=0.3,high=0.7"),
        ("dpm++2m", "zero-star+rescale"),
        ("dormand-prince:tolerance=0.1", "skip-layers:layers=1,low=0.1"),
        ("midpoint", "auto:weaker=other"),
    ],
)
def test_solver_grid_and_guidance_by_name(solver: str, guidance: str, tmp_path: Path) -> None:
    line = ["sample", "any", "a red circle", "-n", "2", "--out", str(tmp_path), "--steps", "3"]
    line += ["--solver", solver, "--grid", "released", "--shift", "3", "--guidance-scale", "2"]
    assert main([*line, "--guidance", guidance]) == 0
    for path in tmp_path.iterdir():
        about = read_metadata(path)
        settings = from_json(SamplingSettings, about["settings"])
        assert settings.solver == parse_solver(solver)
        assert settings.grid == ReleasedGrid()
        assert settings.guidance == parse_guidance(guidance)
        assert (settings.num_steps, settings.shift, settings.guidance_scale) == (3, 3.0, 2.0)
        assert ("num_evaluations" in about) == ("dormand" in solver)
        assert ("weaker" in about) == ("auto" in guidance)


@pytest.mark.usefixtures("random_model")
@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--solver", "rk5", "there is no solver 'rk5'; there are euler, heun"),
        ("--grid", "dynamic:mu=1", "grid dynamic has no 'mu'; it takes nothing"),
        (
            "--guidance",
            "perturb-attention:layers=2",
            "this model has no block 2; give numbers from",
        ),
        ("--guidance-scale", "-1", "guidance_scale=-1.0 must be a finite number"),
        ("--steps", "0", "expected a whole number from 1 to 1000, got '0'"),
        ("--height", "40", "height 40 px does not fit this model; give a multiple of 16 px"),
        ("--model", "other", "--model goes with --replay; otherwise the model is the first word"),
    ],
)
def test_what_sampling_does_not_know_is_one_line(
    option: str, value: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "any", "a ring", "--out", str(tmp_path), f"{option}={value}"]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_negative_prompt_and_size(tmp_path: Path) -> None:
    line = ["sample", "any", "a ring", "--out", str(tmp_path), "--negative", "a circle"]
    assert main([*line, "--height", "32", "--width", "48"]) == 0
    (path,) = tmp_path.iterdir()
    assert read_metadata(path)["negative_prompt"] == "a circle"
    assert read_png(path).shape == (32, 48, 3)


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_from_a_picture_with_loras_and_variations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "source.png", source(64, 48))
    save(tmp_path / "mask.png", mask()[:, :48])
    lora_file(tmp_path / "a:b.safetensors")
    lora_file(tmp_path / "wordy.safetensors", text="t5")
    line = "sample any RING --out out --steps 2 -n 2 --seed 3 --image source.png --mask mask.png"
    words = ["a ring" if word == "RING" else word for word in line.split()]
    words += ["--lora", "a:b.safetensors", "--lora=wordy.safetensors:-0.5"]
    words += ["--strength", "0.5", "--variation", "7:0.1"]
    assert main(words) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    about = [from_json(PictureMetadata, read_metadata(path)) for path in paths]
    assert [each.seed for each in about] == [3, 3]
    assert [each.variation for each in about] == [
        Variation(seed=7, amount=0.1),
        Variation(seed=8, amount=0.1),
    ]
    edit = read_edit("source.png", "mask.png", strength=0.5)
    files = [LoraFile.parse("a:b.safetensors"), LoraFile.parse("wordy.safetensors:-0.5")]
    expected = with_loras(tiny_model(), files)
    assert {(each.edit, each.loras) for each in about} == {(edit.reference, expected.loras)}
    settings = replace(expected.settings, num_steps=2, height_px=64, width_px=48)
    images = generate(
        expected, ["a ring"] * 2, [3, 3], settings, edit=edit,
        variations=[each.variation for each in about if each.variation],
    )  # fmt: skip
    for path, image in zip(paths, images, strict=True):
        assert (read_png(path) == image).all()
    assert main(["sample", "--replay", str(paths[1])]) == 0
    assert capsys.readouterr().out == f"{paths[1]}: identical\n"
    for name in ("source.png", "mask.png", "wordy.safetensors"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    moved = ["--image", "moved-source.png", "--mask=moved-mask.png"]
    again = ["sample", "--replay", str(paths[1]), *moved, "--lora"]
    assert main([*again, "moved-wordy.safetensors"]) == 0
    assert main([*again, "moved-wordy.safetensors:-0.5"]) == 2
    assert "takes the weights of LoRAs from the picture; give" in capsys.readouterr().err


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_in_eight_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sample", "any", "a ring", "--steps", "2", "--out", str(tmp_path)]
    assert main([*line, "--quantize", "int8", "--seed", "4"]) == 0
    told = capsys.readouterr()
    assert re.search(r"rectiflow: int8 moves the backbone's output by \d+\.\d\d%\n", told.err)
    path = Path(told.out.strip())
    assert main(["info", str(path)]) == 0
    assert re.search(r"blocks multiplied in +int8", capsys.readouterr().out)
    assert main(["sample", "--replay", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: identical\n"
    # Another picture, so another file.
    assert main(line) == 0
    assert Path(capsys.readouterr().out.strip()) != path
    assert main([*line, "--quantize", "int4"]) == 2
    assert "quantization 'int4' must be one of int8, fp8" in capsys.readouterr().err


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_a_list_from_one_picture(tmp_path: Path) -> None:
    image = save(tmp_path / "source.png", source(32, 32))
    (tmp_path / "prompts.txt").write_text("a ring\na cross\n")
    line = ["sample", "any", "--prompts", str(tmp_path / "prompts.txt"), "--image", str(image)]
    line += ["--lora", str(lora_file(tmp_path / "style.safetensors"))]
    assert main([*line, "--steps", "1", "--out", str(tmp_path / "out")]) == 0
    paths = list((tmp_path / "out").glob("*.png"))
    assert len(paths) == 2
    for path in paths:
        about = from_json(PictureMetadata, read_metadata(path))
        assert about.edit == read_edit(image).reference
        assert [lora.name for lora in about.loras] == ["style.safetensors"]
        assert read_png(path).shape == (32, 32, 3)


@pytest.mark.usefixtures("random_model")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--mask", "mask.png"], "--mask goes with --image, the picture to draw from"),
        (["--strength", "0.5"], "--strength goes with --image"),
        (["--image", "nowhere.png"], "cannot read nowhere.png: it does not exist"),
        (["--image", "prompts.txt"], "prompts.txt is no picture; give a PNG, JPEG or WebP"),
        (["--image", "source.png", "--mask", "small.png"], "small.png is 64×32 px, the picture"),
        (["--image", "source.png", "--strength", "1.5"], "strength=1.5 must be above 0"),
        (
            ["--image", "source.png", "--width", "32"],
            "the source is 64×64 px, the settings",
        ),
        (["--lora", "nowhere.safetensors:0.5"], "nowhere.safetensors"),
        (["--lora", "nowhere.safetensors:nan"], "the weight of nowhere.safetensors is nan"),
        (["--variation", "x"], "expected a seed, or seed:amount as in 7:0.2, got 'x'"),
        (["--variation", "7:2"], "amount=2.0 must be from 0"),
        (["--variation=-7:0.5"], "seed -7 is out of range"),
        (
            ["--replay", "a.png", "--variation=7", "--strength=1"],
            "leave out any, --strength",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "source.png", source())
    save(tmp_path / "small.png", mask()[:32])
    (tmp_path / "prompts.txt").touch()
    assert main(["sample", "any", "a ring", "--out", "out", *words]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("random_model")
@pytest.mark.parametrize(
    "line", ["any RING --steps 1", "--steps 1 any RING", "any --steps 1 RING", "any --steps 1 --"]
)
def test_words_may_stand_around_options(line: str, tmp_path: Path) -> None:
    words = ["a ring" if word == "RING" else word for word in line.split()]
    dashed = ["-a ring"] if words[-1] == "--" else []
    assert main(["sample", "--out", str(tmp_path), *words, *dashed]) == 0
    (path,) = tmp_path.iterdir()
    assert read_metadata(path)["prompt"] == (dashed or ["a ring"])[0]


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_a_list_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a ring"}\n{"prompt": "a cross", "steps": 1, "n": 1}\n')
    line = ["sample", "any", "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    line += ["-n", "2", "--seed", "3", "--steps", "2", "--negative", "a circle"]
    assert main(line) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    about = [read_metadata(path) for path in paths]
    assert [each["prompt"] for each in about] == ["a ring", "a ring", "a cross"]
    assert [each["seed"] for each in about] == [3, 4, 3]
    assert [each["settings"]["num_steps"] for each in about] == [2, 2, 1]
    assert {each["negative_prompt"] for each in about} == {"a circle"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [path.name for path in paths] + ["index.jsonl"]
    )
    prompts.write_text('{"prompt": "a ring", "cfg": 3}\n')
    assert main(line) == 2
    assert 'prompts.jsonl:1: unknown key "cfg"' in capsys.readouterr().err
    assert main([*line, "any", "a ring"]) == 2


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_replay_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["sample", "any", "a ring", "--out", str(out), "--steps", "1"]) == 0
    (path,) = out.iterdir()
    capsys.readouterr()
    assert main(["sample", "--replay", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: identical\n"
    image = read_png(path)
    save_png(path, 255 - image, read_metadata(path))
    line = ["sample", "--replay", str(path), "--model", "other", "--out"]
    assert main([*line, str(again)]) == 1
    told = capsys.readouterr().out
    assert told.startswith(f"{path}: differs\n  pixels: ")
    assert told.endswith(f"{again / path.name}\n")
    assert (read_png(again / path.name) == image).all()
    assert main([*line, str(out)]) == 2
    assert "itself lies in" in capsys.readouterr().err


@pytest.mark.usefixtures("random_model")
def test_pictures_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["sample", "any", "a ring", "--out", str(tmp_path / "file")]) == 2
    assert "file is a file, not a folder" in capsys.readouterr().err


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_scores_are_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores.json"
    assert main(["evaluate", "any", "--per-task", "1", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    for task in TASKS:
        assert f"{task} (seen)" in table
    evaluation = read_evaluation(out)
    assert evaluation.per_task == 1
    assert evaluation.overall.unseen is not None


@pytest.mark.system
@pytest.mark.usefixtures("random_model")
def test_scores_of_a_model_as_it_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "scores.json", lora_file(tmp_path / "style.safetensors")
    line = ["evaluate", "any", "--per-task", "1", "--out", str(out), "--steps", "1", "--solver"]
    line += ["heun", "--guidance", "auto:weaker=other", "--lora", f"{file}:0.5"]
    assert main([*line, "--quantize", "int8", "--seed", "4"]) == 0
    told = capsys.readouterr()
    assert "int8 moves the backbone's output by" in told.err
    assert "test, style.safetensors by 0.5, in int8 on shapeworld" in told.out
    evaluation = read_evaluation(out)
    assert evaluation.settings == replace(
        tiny_model().settings,
        num_steps=1,
        solver=parse_solver("heun"),
        guidance=parse_guidance("auto:weaker=other"),
    )
    assert [(lora.name, lora.weight) for lora in evaluation.loras] == [("style.safetensors", 0.5)]
    assert (evaluation.quantization, evaluation.seed) == ("int8", 4)
    assert main([*line, "--height", "32"]) == 2
    assert "pictures of 64×32 px cannot be read back" in capsys.readouterr().err


def test_an_unwritable_result_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "load_model", pytest.fail)
    assert main(["evaluate", "any", "--out", str(tmp_path)]) == 2
    assert "it is a folder, not a file" in capsys.readouterr().err


def test_released_weights_with_parts_from_elsewhere(tmp_path, capsys):
    from generation.released_folder import save_released

    from rectiflow.generation.pictures import read_metadata
    from rectiflow.models.published import convert, open_checkpoint, save_single_file

    folder = save_released(tmp_path / "sd3")
    convert(folder, tmp_path / "sd3.safetensors")
    words = [
        "sample",
        str(tmp_path / "sd3.safetensors"),
        "a red circle",
        "--out",
        str(tmp_path / "o"),
    ]
    size = ["--height", "64", "--width", "64", "--steps", "2"]
    assert main([*words, *size]) == 2
    assert "comes without tokenizers" in capsys.readouterr().err
    parts = ["--tokenizers", str(folder), "--encoders", "clip_l,clip_g", "--precision", "fp32"]
    assert main([*words, *size, *parts]) == 0
    (path,) = capsys.readouterr().out.split()
    assert read_metadata(path)["settings"]["grid"] == {"kind": "ReleasedGrid"}
    parts_of = open_checkpoint(folder).parts
    save_single_file(
        tmp_path / "no-t5.safetensors", {n: p for n, p in parts_of.items() if n != "t5"}
    )
    words[1] = str(tmp_path / "no-t5.safetensors")
    assert main([*words, *size, "--tokenizers", str(folder)]) == 0
    assert "the model comes without t5" in capsys.readouterr().err
    assert main([*words, *size, "--precision", "fp8"]) == 2
    assert "precision='fp8' must be one of auto" in capsys.readouterr().err
