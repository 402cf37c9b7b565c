"""The sampler: reproducible by seed and position, row by row, and of the right distribution."""

import math

import torch

from engines.embedded.sampling import Draw, Known, choose, uniform


def test_uniform_is_a_fixed_function_of_seed_and_position() -> None:
    assert uniform(0, 0) == 0.0564663990004608
    assert uniform(2**63 - 1, 17) == 0.23542698608662993
    values = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert all(0.0 <= value < 1.0 for value in values)
    assert len(set(values)) == 10_000
    assert abs(sum(values) / 10_000 - 0.5) < 0.01


def test_a_rows_token_does_not_depend_on_its_neighbours_or_its_row() -> None:
    torch.manual_seed(0)
    mine = torch.randn(64) * 3
    for draw in (Draw(9, 4), Draw(9, 4, temperature=0.7, top_p=0.8), Draw(9, 4, top_k=5, min_p=0.01), Draw(9, 4, temperature=0.0)):
        answers = set()
        for row in range(8):
            logits = torch.randn(8, 64)
            logits[row] = mine
            rows: list[Draw | Known | None] = [Draw(row, 1, temperature=0.3), None] * 4
            rows[row] = draw
            tokens, logprobs = choose(logits, rows)
            answers.add((tokens[row], logprobs[row]))
        assert len(answers) == 1


def test_the_distribution_is_that_of_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    counts = [0] * 4
    for seed in range(0, 8000, 8):
        tokens, _ = choose(logits.repeat(8, 1), [Draw(seed + row, 3, temperature=0.5) for row in range(8)])
        for token in tokens:
            counts[token] += 1
    expected = torch.softmax(logits / 0.5, -1).tolist()
    assert counts[3] == 0
    assert all(abs(count / 8000 - share) < 0.02 for count, share in zip(counts, expected, strict=True))


def test_logprobs_are_those_at_the_temperature_and_of_the_raw_logits_when_greedy() -> None:
    logits = torch.randn(4, 16)
    tokens, logprobs = choose(logits, [Draw(1, 0, temperature=2.0), Draw(1, 0, temperature=0.0), Known(5), Draw(1, 0, top_k=1)])
    assert tokens[1] == int(logits[1].argmax())
    assert tokens[2] == 5
    assert tokens[3] == int(logits[3].argmax())
    expected = [torch.log_softmax(logits[0] / 2.0, -1)[tokens[0]], *(torch.log_softmax(logits[i], -1)[tokens[i]] for i in (1, 2, 3))]
    assert all(math.isclose(a, float(b), rel_tol=1e-6) for a, b in zip(logprobs, expected, strict=True))


def test_truncation_and_bans() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4, 1)
    seen: list[set[int]] = [set(), set(), set(), set()]
    for seed in range(300):
        rows = [Draw(seed, 0, top_p=0.7), Draw(seed, 0, top_k=3), Draw(seed, 0, min_p=0.2), Draw(seed, 0, banned=(0, 1))]
        tokens, _ = choose(logits, rows)
        for row, token in enumerate(tokens):
            seen[row].add(token)
    assert seen == [{0, 1}, {0, 1, 2}, {0, 1, 2}, {2, 3}]
