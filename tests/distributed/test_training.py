"""Any number of processes trains the same model as one."""

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "name",
    [
        *("AdamW", "its average", "its power average", "its state"),
        *("Muon", "two copies", "micro-batches", "faster", "its projector"),
        *("LoRA", "LoRA's average", "taken back"),
    ],
)
def test_weights_are_those_of_one_process(outcome: dict[str, Any], name: str) -> None:
    """50 steps of AdamW, recomputed, 9 of Muon; 4 on a mesh of two copies in two parts.

    Faster are 4 steps with alignment, contrast and routing; a LoRA is trained for 4; taken back are
    the first of 4, as the second batch is no numbers.
    """
    assert outcome["distances"][name] < 1e-6


def test_steps_are_taken_back_alike(outcome: dict[str, Any]) -> None:
    """To the start, before there is a checkpoint."""
    assert outcome["spikes"] == [[0], [0]]


def test_no_process_holds_a_whole_model_while_it_starts(outcome: dict[str, Any]) -> None:
    """Weights, average and AdamW's two are four whole models, a process of four has a quarter."""
    for memory in outcome["memory of start"]:
        assert 0.9 * memory["weights"] < memory["grown"] < 1.3 * memory["weights"]


def test_what_a_lora_leaves_as_it_is_is_held_once_however_many_averages_there_are(
    outcome: dict[str, Any],
) -> None:
    alone, *each_of_two = outcome["held with a LoRA"]
    assert each_of_two == [alone // 2] * 2


def test_blocks_gathered_in_bfloat16_compute_what_autocast_does(outcome: dict[str, Any]) -> None:
    assert outcome["distances"]["bfloat16"] < 2e-3
    mine, theirs = (outcome["events"][name] for name in ("bf16 2", "bf16 1"))
    for event, expected in zip(mine, theirs, strict=True):
        assert event["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("run", "reference"),
    [
        ("muon 2", "muon 1"),
        ("elastic", "muon 1"),
        ("adamw 1 by 2", "adamw 1"),
        ("faster 2", "faster 1"),
    ],
)
def test_losses_and_gradients_are_those_of_one_process(
    outcome: dict[str, Any], run: str, reference: str
) -> None:
    """`elastic` went on from two processes to one to four: another sample would show at once."""
    mine, theirs = outcome["events"][run], outcome["events"][reference]
    assert [(e["kind"], e["step"]) for e in mine] == [(e["kind"], e["step"]) for e in theirs]
    for event, expected in zip(mine, theirs, strict=True):
        if event["kind"] == "train":
            assert event["loss"] == pytest.approx(expected["loss"], rel=1e-6)
            assert event["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)
            if expected["similarity"] is not None:
                assert event["similarity"] == pytest.approx(expected["similarity"], rel=1e-5)
        elif event["kind"] == "diagnosis":  # of all rows, not of one process's own
            for block, whole in zip(event["blocks"], expected["blocks"], strict=True):
                assert block == pytest.approx(whole, rel=1e-4)
        else:
            for weights in ("raw", "ema"):
                found = event[weights]["per_level"]
                assert found == pytest.approx(expected[weights]["per_level"], rel=1e-6)


@pytest.mark.parametrize(("processes", "num_passes"), [("two", 2 * 7), ("four", 7)])
def test_held_out_batches_are_shared_out_and_every_sample_has_the_same_loss(
    outcome: dict[str, Any], processes: str, num_passes: int
) -> None:
    """Three batches of different sizes; all processes make as many passes as any other."""
    (alone,) = outcome["validated"]["alone"]
    assert (len(alone["losses"]), alone["num_passes"]) == (9, 3 * 7)
    for found in outcome["validated"][processes]:
        assert found["losses"] == alone["losses"]
        assert found["num_passes"] == num_passes


def test_fine_tuning_prepares_in_the_first_process_and_trains_in_both(
    outcome: dict[str, Any],
) -> None:
    """Its first steps divide by gradients that may be rounding alone, hence the tolerance."""
    (mine,), (theirs,) = (outcome["events"][f"fine-tuned {n}"] for n in (2, 1))
    assert mine["step"] == theirs["step"] == 2
    assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-2)


def test_averages_are_kept_in_one_piece(outcome: dict[str, Any]) -> None:
    assert outcome["kept averages"]


@pytest.mark.parametrize("mesh", ["torn", "torn copies"])
def test_what_a_thread_writes_is_not_changed_by_the_next_step(
    outcome: dict[str, Any], mesh: str
) -> None:
    """Cut in two parts, and as two whole copies, whose weights are each process's own tensors."""
    assert outcome["first"][mesh] == []
    assert outcome["second"][mesh] == (None if mesh == "torn copies" else [])


def test_each_process_writes_the_part_that_it_holds(outcome: dict[str, Any]) -> None:
    stems = ("ema", "optimizer", "weights")
    files = [f"{stem}-{part:05d}-of-00002.safetensors" for stem in stems for part in (1, 2)]
    assert outcome["parts"] == sorted([*files, "state.json"])


def test_killed_and_continued_by_as_many_processes_is_never_killed(outcome: dict[str, Any]) -> None:
    """One of them died within a checkpoint."""
    assert outcome["killed"] == []
    assert outcome["left over"] == []


def test_a_signal_to_one_process_stops_all_after_the_same_step(outcome: dict[str, Any]) -> None:
    assert outcome["first"]["stopped"] == outcome["second"]["stopped"] == [3, 15]


def test_the_first_process_alone_draws_with_the_whole_average(outcome: dict[str, Any]) -> None:
    assert outcome["first"]["drawn"] == pytest.approx(outcome["averages"], rel=1e-6)
    assert outcome["second"]["drawn"] == []


@pytest.mark.parametrize("process", ["first", "second"])
def test_uneven_batches_are_refused(outcome: dict[str, Any], process: str) -> None:
    batch, micro_batch = outcome[process]["uneven"]
    assert batch == (
        "batch_size 3 does not divide among 2 processes; start a number of processes that divides "
        "it, or choose a multiple"
    )
    assert micro_batch == (
        "micro_batch 3 does not divide the 2 samples that each of 2 processes takes of batch_size "
        "4; choose a divisor of 2"
    )


def test_one_broken_row_stops_all_and_can_be_replayed_by_one(outcome: dict[str, Any]) -> None:
    for process in ("first", "second"):
        assert "training stopped at step 2: the loss is nan" in outcome[process]["diverged"]
    assert repr(outcome["replayed"]["loss"]) == "nan"
