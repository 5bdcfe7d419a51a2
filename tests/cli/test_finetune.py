"""`rectiflow finetune`: options and exit code; the training itself is replaced."""

import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from rectiflow.cli.main import main
from rectiflow.distributed import world as worlds
from rectiflow.distributed.world import World
from rectiflow.recipes import fine_tuning
from rectiflow.recipes.fine_tuning_request import FineTuning
from rectiflow.training.fine_tuning import LoraTraining
from rectiflow.training.hooks import Hook
from rectiflow.training.loop import TrainResult

CALL = ["finetune", "sd3", "--data", "pictures", "--out", "run"]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[FineTuning]:
    """What `fine_tune` is asked for; it ends at once, and a run named "stopped" by a signal."""
    received: list[FineTuning] = []

    def fine_tune(request: FineTuning, *, hooks: list[Hook], world: World) -> TrainResult:
        assert not hooks
        received.append(request)
        stopped = signal.SIGTERM if request.out.name == "stopped" else None
        return TrainResult(
            run=request.out,
            model=request.out / "model",
            step=5,
            max_steps=10,
            elapsed_s=1.0,
            signal=stopped,
            interrupted=stopped,
            validation=None,
        )

    monkeypatch.setattr(fine_tuning, "fine_tune", fine_tune)
    return received


def test_the_usual_and_where_the_model_lies(
    requests: list[FineTuning], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(CALL) == 0
    assert requests == [FineTuning(model="sd3", data=Path("pictures"), out=Path("run"))]
    assert capsys.readouterr().out == "10 steps done; the model lies in run/model\n"


def test_every_option_arrives(
    requests: list[FineTuning], capsys: pytest.CaptureFixture[str]
) -> None:
    lora = ["--lora", "8", "--hold-base", "bf16", "--learning-rate", "2e-4", "--max-steps", "7"]
    prior = ["--prior-prompt", "a dog", "--prior-count", "20", "--prior-weight", "0.5"]
    samples = ["--sample-prompt", "a", "--sample-prompt", "b", "--sample-every", "3"]
    other = ["--caption", "sks dog", "--batch-size", "2", "--resolution", "512", "--seed", "4"]
    weights = ["--encoders", "clip_l,clip_g", "--tokenizers", "sd3"]
    assert main([*CALL, *lora, *prior, *samples, *other, *weights]) == 0
    (asked,) = requests
    assert asked.lora == LoraTraining(rank=8, hold_base="bf16")
    assert (asked.learning_rate, asked.max_steps, asked.batch_size) == (2e-4, 7, 2)
    assert (asked.prior_prompt, asked.prior_count, asked.prior_weight) == ("a dog", 20, 0.5)
    assert (asked.sample_prompts, asked.sample_every) == (("a", "b"), 3)
    assert (asked.caption, asked.resolution_px, asked.seed) == ("sks dog", 512, 4)
    assert (asked.load.encoders, asked.load.tokenizers) == (("clip_l", "clip_g"), Path("sd3"))
    assert "the LoRA lies in run/model/lora.safetensors\n" in capsys.readouterr().out


@pytest.mark.parametrize("lora", [[], ["--lora", "4", "--hold-base", "bf16"]])
def test_a_plan_trains_nothing(
    lora: list[str], requests: list[FineTuning], capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["finetune", "tiny-mmdit", "--data", "nowhere", "--out", "nowhere/run"]
    assert main([*call, "--plan", "1xH100", "--batch-size", "8", *lora]) == 0
    said = capsys.readouterr().out
    assert "on 1 × H100 in bf16" in said
    assert "latents of 8×8, 32 text tokens, 8 a step, 8,000 in 1,000 steps" in said
    assert ("two forward passes" if lora else "three forward passes") in said
    assert ("weights (bf16, LoRA float32)" if lora else "weights (float32 master)") in said
    assert not requests


def test_a_stopped_run_has_the_signals_exit_code(
    requests: list[FineTuning], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*CALL[:-1], "stopped"]) == 128 + signal.SIGTERM
    assert "stopped at step 5 of 10; the same command continues" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["run", "stopped"])
def test_the_first_process_alone_says_how_it_ended(
    run: str,
    requests: list[FineTuning],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    codes: list[int] = []
    said: list[str] = []
    for rank in range(3):
        world = World(rank=rank, num_processes=3)
        monkeypatch.setattr(worlds, "open_world", lambda world=world, **_: nullcontext(world))
        codes.append(main([*CALL[:-1], run]))
        said.append(capsys.readouterr().out)
    assert codes == [codes[0]] * 3
    assert said[0].count("\n") == 1
    assert said[1:] == ["", ""]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--lora", "x"], "argument --lora: expected a whole number of at least 1, got 'x'"),
        (["--plan", "1xBrick"], "Brick"),
        (["--hold-base", "bf16"], "--hold-base goes with --lora"),
        (["--prior", "p", "--prior-count", "2"], "give one"),
        (["--rank", "4"], "does not know '--rank'"),
    ],
)
def test_mistakes_are_one_line(
    requests: list[FineTuning], more: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*CALL, *more]) == 2
    assert text in capsys.readouterr().err
    assert not requests
