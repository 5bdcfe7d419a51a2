"""Modulation that lies in a file computes the same bits, and stays there."""

from pathlib import Path

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone

from rectiflow.base.errors import UserError
from rectiflow.models.layers.modulation import Modulation
from rectiflow.models.lora import Lora, merge, sharing_copy
from rectiflow.models.lora.low_rank import LowRank
from rectiflow.models.offloading import OffloadedLinear, is_offloaded, offload_modulation
from rectiflow.models.tabulation import tabulate

TIMES = torch.tensor([1.0, 0.4])


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_it_is_the_same_function_by_the_same_names(name: str) -> None:
    model = random_backbone(CONFIGS[name])
    z_t, t, conditioning = inputs()
    before = model(z_t, t, conditioning)
    offloaded = offload_modulation(model)
    assert torch.equal(offloaded(z_t, t, conditioning), before)
    assert torch.equal(model(z_t, t, conditioning), before)
    assert is_offloaded(offloaded)
    assert not is_offloaded(model)
    state = model.state_dict()
    assert list(offloaded.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in offloaded.state_dict().items())
    embedded = model.embed(conditioning)
    (plain, (prompt,)), (other, (same,)) = (
        tabulate(one, [embedded], TIMES) for one in (model, offloaded)
    )
    assert torch.equal(plain(z_t, TIMES, prompt), other(z_t, TIMES, same))


def test_all_of_the_modulation_is_mapped_from_a_file_and_nothing_moves_it() -> None:
    model = random_backbone(CONFIGS["mmdit"])
    offloaded = offload_modulation(model)
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    own = [p for p in offloaded.parameters() if p.data_ptr() not in shared]
    of_modulation = [
        p for m in offloaded.modules() if isinstance(m, Modulation) for p in m.parameters()
    ]
    assert {id(p) for p in own} == {id(p) for p in of_modulation}
    mapped = Path("/proc/self/maps").read_text()
    for p in own:
        start = max(
            int(line.split("-")[0], 16)
            for line in mapped.splitlines()
            if int(line.split("-")[0], 16) <= p.data_ptr()
        )
        (line,) = [one for one in mapped.splitlines() if one.startswith(f"{start:x}-")]
        assert "modulation.safetensors" in line
    offloaded.to(torch.bfloat16)
    for module in offloaded.modules():
        if isinstance(module, OffloadedLinear):
            assert module.weight.dtype == torch.float32
    assert offloaded.context_embedder.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_loras_find_it_and_leave_the_file_alone() -> None:
    model = random_backbone(CONFIGS["mmdit"])
    name = "joint_blocks.0.x_block.adaLN_modulation.1.weight"
    before = model.get_parameter(name).clone()
    rows, columns = before.shape
    pair = LowRank(down=torch.randn(2, columns), up=torch.randn(rows, 2), alpha=2.0, first_row=0)
    lora = Lora(config=CONFIGS["mmdit"], parts={"mmdit": {name: (pair,)}})
    offloaded = offload_modulation(model)
    changed = sharing_copy(offloaded)
    merge(changed, [(lora, 1.0)])
    assert torch.equal(offloaded.get_parameter(name), before)
    expected = before + pair.up @ pair.down
    torch.testing.assert_close(changed.get_parameter(name).data, expected)


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(tensors: object, file: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr("rectiflow.models.offloading.save_file", full)
    with pytest.raises(UserError, match=r"cannot write the modulation's .*RECTIFLOW_CACHE"):
        offload_modulation(random_backbone(CONFIGS["mmdit"]))
    assert not list(tmp_path.iterdir())
