"""What is guessed about a sample's length, from what the client says to knowing nothing."""

from array import array
from itertools import pairwise
from math import exp
from random import Random
from typing import Any

import pytest

from engines.gateway.core.ordering.lengths import UNKNOWN_LENGTH, Guess, Lengths, expected_remaining
from engines.gateway.core.samples import TOKENS, Request


def request(limit: int | None = 1000, params: dict[str, Any] | None = None, **more: Any) -> Request:
    return Request(array(TOKENS, [1]), params or {}, limit, **more)


def test_what_is_known_best_counts() -> None:
    lengths = Lengths()
    assert lengths.guess(1, request()) == Guess(500.0, own=False)
    assert lengths.guess(1, request(None)) == Guess(UNKNOWN_LENGTH, own=False)
    lengths.note(1, 300)
    lengths.note(2, 30)
    lengths.settle()
    assert not lengths.guess(3, request()).own
    assert 30 < lengths.guess(3, request()).tokens < 300, "what all were like"
    assert lengths.guess(3, request()).tokens < lengths.guess(1, request()).tokens < 300, "one sample says less than many"
    assert lengths.guess(1, request(expected_tokens=7)) == Guess(7.0), "the client knows"
    exact = lengths.guess(1, request(64, {"ignore_eos": True}))
    assert (exact.remaining(0, 64), exact.remaining(20, 64), exact.own) == (64.0, 44.0, True)
    assert lengths.guess(1, request(64, {"ignore_eos": True}, stops=("x",))) != exact, "it may stop earlier"


def test_a_prompts_mean_follows_its_recent_samples() -> None:
    lengths = Lengths()
    for _ in range(100):
        lengths.note(1, 100)
    assert lengths.guess(1, request()).tokens == pytest.approx(100, rel=0.01)
    for _ in range(24):
        lengths.note(1, 400)
    assert 350 < lengths.guess(1, request()).tokens < 401


def test_the_prior_has_the_spread_of_what_was_seen() -> None:
    lengths, random = Lengths(), Random(1)
    for prompt in range(2000):
        lengths.note(prompt, 200 * exp(random.gauss(0.0, 0.9)))
    lengths.settle()
    prior = lengths.guess(-1, request())
    assert prior.tokens == pytest.approx(200, rel=0.25)
    assert prior.spread == pytest.approx(0.9, rel=0.2)


def test_nobody_is_expected_to_go_beyond_the_limit() -> None:
    assert Guess(5000.0).remaining(0, 1000) == 1000.0
    assert Guess(50.0).remaining(990, 1000) == 10.0
    assert Guess(50.0).remaining(1000, 1000) == 0.0
    assert Guess(50.0).remaining(990, None) > 10.0


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    lengths = Lengths(room=3)
    for prompt in (1, 2, 3, 1, 4):
        lengths.note(prompt, 10)
    assert list(lengths) == [3, 1, 4]


def test_the_prior_changes_rarely() -> None:
    lengths = Lengths()
    epochs = []
    for tokens in range(1, 1000):
        lengths.note(tokens, tokens)
        epochs.append(lengths.epoch)
    assert epochs[-1] == 3, "at 1, 8, 64 samples"
    lengths.settle()
    assert lengths.epoch == 4
    lengths.settle()
    assert lengths.epoch == 4, "and only if it has changed"


# ---- the conditional mean of a log-normal


def test_nothing_generated_yet_is_the_mean() -> None:
    assert expected_remaining(20.0, 0.0) == pytest.approx(20.0 * exp(0.125))
    assert expected_remaining(0.0, 5.0) == 0.0


@pytest.mark.parametrize("age", [5.0, 20.0, 60.0])
def test_it_is_what_sampling_says(age: float) -> None:
    random = Random(1)
    left = [length - age for _ in range(200_000) if (length := 20.0 * exp(random.gauss(0.0, 0.5))) > age]
    assert expected_remaining(20.0, age) == pytest.approx(sum(left) / len(left), rel=0.05)


def test_who_has_outlived_its_guess_is_expected_to_be_long() -> None:
    assert expected_remaining(10.0, 100.0) > expected_remaining(10.0, 30.0) > expected_remaining(10.0, 12.0)
    far = [expected_remaining(1.0, age) for age in (10.0, 20.0, 21.0, 100.0, 1e6)]
    assert far == sorted(far)
    assert all(left > 0 for left in far)


def test_the_far_tail_goes_on_without_a_jump() -> None:
    steps = [expected_remaining(1.0, 1.0 + i * 0.05) for i in range(1000)]
    assert all(abs(b - a) < 0.15 * max(a, 0.2) for a, b in pairwise(steps))
