import pytest
import torch

from rectiflow.evaluation.features import Distance, Features, check_comparable


def test_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="there are no features of A"):
        Features(vectors=torch.zeros(0, 3), backbone="A")
    with pytest.raises(ValueError, match="features of A are not finite"):
        Features(vectors=torch.tensor([[0.0, float("nan")]]), backbone="A")


def test_features_of_two_networks_do_not_compare() -> None:
    one = Features(vectors=torch.zeros(2, 3), backbone="A")
    for other in (
        Features(vectors=torch.zeros(2, 3), backbone="B"),
        Features(vectors=torch.zeros(2, 4), backbone="A"),
    ):
        with pytest.raises(ValueError, match=r"features of A \(3 wide\) and of [AB] \([34] wide\)"):
            check_comparable(one, other)


def test_a_distance_prints_its_sample_counts() -> None:
    distance = Distance(
        metric="Fréchet", value=1.23456, num_samples=128, num_reference=512, backbone="A"
    )
    assert str(distance) == "Fréchet 1.235 (n = 128 against 512, A)"
