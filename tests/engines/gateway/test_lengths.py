"""What is guessed about a sample's length, from what the client says to knowing nothing."""

from array import array
from math import exp
from random import Random
from typing import Any

import pytest

from engines.gateway.core.ordering.lengths import UNHEARD, Guess, Lengths
from engines.gateway.core.samples import TOKENS, Request


def request(limit: int | None = 1000, params: dict[str, Any] | None = None, **more: Any) -> Request:
    return Request(array(TOKENS, [1]), params or {}, limit, **more)


def test_what_is_known_best_counts() -> None:
    lengths = Lengths()
    assert lengths.guess(1, request()) == Guess(500.0, own=False)
    assert lengths.guess(1, request(None)) == Guess(UNHEARD, own=False)
    lengths.note(1, 300)
    lengths.note(2, 30)
    lengths.settle()
    assert not lengths.guess(3, request()).own
    assert 30 < lengths.guess(3, request()).tokens < 300, "what all were like"
    assert lengths.guess(3, request()).tokens < lengths.guess(1, request()).tokens < 300, "one sample says less than many"
    assert lengths.guess(1, request(expected_tokens=7)) == Guess(7.0), "the client knows"
    exact = lengths.guess(1, request(64, {"ignore_eos": True}))
    assert (exact.left(0, 64), exact.left(20, 64), exact.own) == (64.0, 44.0, True)
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
    assert Guess(5000.0).left(0, 1000) == 1000.0
    assert Guess(50.0).left(990, 1000) == 10.0
    assert Guess(50.0).left(1000, 1000) == 0.0
    assert Guess(50.0).left(990, None) > 10.0


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
