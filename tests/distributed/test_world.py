"""The world of one process, and what is refused before there are several."""

import pytest
import torch

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.distributed.world import ALONE, device_of, open_world


def test_alone_there_is_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with open_world() as world:
        assert world is ALONE
        assert world.is_first
        assert not torch.distributed.is_initialized()
        assert world.gather(0.1, 2.0).tolist() == [[0.1, 2.0]]
        assert world.from_first(lambda: "made") == "made"
        world.wait_for_all()


def test_alone_under_torchrun_it_takes_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with open_world() as world:
        assert (world.device, world.mesh) == (torch.device("cuda", 0), None)
        assert not torch.distributed.is_initialized()


def test_a_gpu_that_is_not_used_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with open_world() as world:
        assert world is ALONE
    assert "on a GPU: torchrun --nproc-per-node 1 -m rectiflow" in capsys.readouterr().err


def test_one_process_cannot_share_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with (
        pytest.raises(ConfigError, match="--shard-over 2 does not divide the 1 processes"),
        open_world(shard_over=2),
    ):
        pass


def test_half_of_torchruns_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(UserError, match="environment variable RANK is None.*torchrun"),
        open_world(),
    ):
        pass


def test_each_process_has_a_gpu_of_its_own_or_all_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(5, 8) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of(3, 4) == torch.device("cuda", 3)
    with pytest.raises(ConfigError, match="8 processes on a machine with 4 GPUs"):
        device_of(3, 8)
