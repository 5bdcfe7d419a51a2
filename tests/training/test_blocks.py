"""Recomputed and compiled blocks compute what plain ones do, and no name says what they are."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone
from training.fake_feed import FakeFeed, tiny_recipe
from training.kill_and_resume import contents

from rectiflow.training.loop import train
from rectiflow.training.recompute import Recompute, recompute_blocks
from rectiflow.training.schedule import Trapezoid


def gradients(kind: str, recompute: Recompute) -> dict[str, torch.Tensor]:
    backbone = random_backbone(CONFIGS[kind]).train()
    names = list(backbone.state_dict())
    recompute_blocks(backbone.blocks, recompute)
    with torch.autocast("cpu", torch.bfloat16):
        output = backbone(*inputs())
    output.float().square().mean().backward()
    assert list(backbone.state_dict()) == names
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["mmdit-x", "dit", "uvit"])
def test_recomputed_gradients_are_the_same_bits(kind: str) -> None:
    expected = gradients(kind, "none")
    for what in ("products", "blocks"):
        found = gradients(kind, what)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_may_go_on_with_another_recompute(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        precision="fp32",
        max_steps=3,
        schedule=Trapezoid(decay_fraction=0.0),  # which does not depend on the run's length
        validate_every=0,
        diagnose_every=3,
    )
    sessions: dict[str, tuple[tuple[int, Recompute], ...]] = {
        "whole": ((3, "none"),),
        "parts": ((1, "none"), (2, "products"), (3, "blocks")),
    }
    for run, parts in sessions.items():
        for max_steps, what in parts:
            changed = dataclasses.replace(recipe, recompute=what)
            train(changed, FakeFeed(), tmp_path / run, max_steps=max_steps, progress=False)
    whole, parts = (contents(tmp_path / run) for run in ("whole", "parts"))
    for name in ("weights", "ema", "optimizer"):
        path = f"checkpoints/step_00000003/{name}.safetensors"
        assert whole[path] == parts[path]
    assert json.loads((tmp_path / "parts" / "recipe.json").read_text())["recompute"] == "blocks"
    assert "recompute" not in json.loads((tmp_path / "whole" / "recipe.json").read_text())


COMPOSITION = """
import functools, torch
torch.set_num_threads(1)
# The whole of the composition but for the generation of code, which takes minutes.
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from rectiflow.models.compilation import compile_blocks
from rectiflow.training.recompute import recompute_blocks
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.substitution import is_compiled

found = []
for is_plain in (True, False):
    torch.manual_seed(0)
    model = MMDiT(MMDiTConfig(depth=1, context_dim=8, pooled_dim=8, position_side=4, base_side=4))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    names = list(model.state_dict())
    if not is_plain:
        recompute_blocks(model.blocks, "products")
        compile_blocks(model.blocks, torch.device("cpu"))
    conditioning = Conditioning(context=torch.randn(2, 3, 8), pooled=torch.randn(2, 8))
    model(torch.randn(2, 16, 4, 4), torch.rand(2), conditioning).square().mean().backward()
    assert is_compiled(model) != is_plain and list(model.state_dict()) == names
    found.append([p.grad for p in model.parameters() if p.grad is not None])
for plain, compiled in zip(*found, strict=True):
    torch.testing.assert_close(plain, compiled)
print("same")
"""


@pytest.mark.compile
def test_recomputed_blocks_compile_whole(run_python) -> None:
    done = run_python(COMPOSITION)
    assert done.stdout.split() == ["same"], done.stderr


TRAINING = """
import dataclasses, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from training.fake_feed import FakeFeed, tiny_recipe
from rectiflow.training.tensor_files import read_tensors
from rectiflow.training.loop import train
from rectiflow.training.schedule import Trapezoid

folder = Path(sys.argv[1])
schedule = Trapezoid(decay_fraction=0.0)  # which does not depend on the run's length
plain = tiny_recipe(precision="fp32", max_steps=4, schedule=schedule, diagnose_every=2)
compiled = dataclasses.replace(plain, compile_blocks=True, recompute="products")
for run, recipes in (("plain", [plain]), ("compiled", [compiled]), ("both", [compiled, plain])):
    for number, recipe in enumerate(recipes, start=1):
        max_steps = 4 * number // len(recipes)
        train(recipe, FakeFeed(), folder / run, max_steps=max_steps, progress=False)

def weights(run):
    return read_tensors(folder / run / "checkpoints" / "step_00000004" / "weights.safetensors")

expected = weights("plain")
for run in ("compiled", "both"):
    found = weights(run)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
print("same")
"""


@pytest.mark.compile
@pytest.mark.slow
def test_a_compiled_run_trains_the_same_model(run_python, tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    done = run_python("-c", TRAINING, str(tmp_path), tests, timeout_s=1800.0)
    assert done.stdout.split() == ["same"], done.stderr


@pytest.mark.compile
@pytest.mark.slow
def test_without_a_compiler_it_is_one_line(
    run_python, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    done = run_python(
        "import torch\nfrom rectiflow.models.compilation import compile_blocks\n"
        "compile_blocks([], torch.device('cpu'))",
        timeout_s=600.0,
    )
    assert "ConfigError: blocks were to be compiled, but torch.compile does not work" in done.stderr
