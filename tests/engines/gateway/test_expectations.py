"""What is expected to be left of a sample: the conditional mean of a log-normal."""

from itertools import pairwise
from math import exp
from random import Random

import pytest

from engines.gateway.core.ordering.expectations import expected_left


def test_nothing_generated_yet_is_the_mean() -> None:
    assert expected_left(20.0, 0.0) == pytest.approx(20.0 * exp(0.125))
    assert expected_left(0.0, 5.0) == 0.0


@pytest.mark.parametrize("age", [5.0, 20.0, 60.0])
def test_it_is_what_sampling_says(age: float) -> None:
    random = Random(1)
    left = [length - age for _ in range(200_000) if (length := 20.0 * exp(random.gauss(0.0, 0.5))) > age]
    assert expected_left(20.0, age) == pytest.approx(sum(left) / len(left), rel=0.05)


def test_who_has_outlived_its_guess_is_expected_to_be_long() -> None:
    assert expected_left(10.0, 100.0) > expected_left(10.0, 30.0) > expected_left(10.0, 12.0)
    far = [expected_left(1.0, age) for age in (10.0, 20.0, 21.0, 100.0, 1e6)]
    assert far == sorted(far)
    assert all(left > 0 for left in far)


def test_the_far_tail_goes_on_without_a_jump() -> None:
    steps = [expected_left(1.0, 1.0 + i * 0.05) for i in range(1000)]
    assert all(abs(b - a) < 0.15 * max(a, 0.2) for a, b in pairwise(steps))
