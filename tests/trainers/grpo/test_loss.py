import math

import pytest
import torch

from trainers.grpo.loss import advantages, policy_loss, token_logprobs

NAN = float("nan")


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 3.0], [2.0, 2.0]], dtype=torch.float64)
    scale = 1 / (math.sqrt(2) + 1e-4)
    expected = torch.tensor([[-scale, scale], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(advantages(rewards), expected)


def test_samples_without_a_reward_count_in_no_mean() -> None:
    found = advantages(torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, 5.0], [NAN, NAN, NAN]]))
    scale = 1 / (math.sqrt(2) + 1e-4)
    expected = torch.tensor([[-scale, NAN, scale], [NAN, NAN, 0.0], [NAN, NAN, NAN]])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_token_logprobs_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [9.0, 9.0]]])
    found = token_logprobs(logits, torch.tensor([[0, 1, 0]]), temperature=1.0)
    torch.testing.assert_close(found, torch.tensor([[math.log(0.75), math.log(0.5)]]))
    warm = token_logprobs(logits, torch.tensor([[0, 1, 0]]), temperature=2.0)
    torch.testing.assert_close(warm[0, 0], torch.tensor(math.log(math.sqrt(3) / (1 + math.sqrt(3)))))


def test_clipped_loss_by_hand() -> None:
    # ratios 1.5, 1.5, 0.5, 0.5 and one masked token whose numbers must not matter
    behaviour = torch.zeros(2, 3)
    logprobs = torch.tensor([[math.log(1.5), math.log(0.5), 80.0], [math.log(1.5), math.log(0.5), NAN]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    logprobs = torch.where(mask > 0, logprobs, 80.0)
    advantage = torch.tensor([2.0, -1.0])
    loss = policy_loss(logprobs, behaviour, advantage, mask, tokens=4.0, clip=0.3)
    # A > 0: min(1.5, 1.3) * 2 + min(0.5, 0.7) * 2; A < 0: -max(1.5, 1.3) - max(0.5, 0.7)
    assert loss.item() == pytest.approx(-(1.3 * 2 + 0.5 * 2 - 1.5 - 0.7) / 4)


def test_gradient_stops_where_the_ratio_is_clipped() -> None:
    logprobs = torch.tensor([[math.log(1.5), math.log(0.9)]], requires_grad=True)
    policy_loss(logprobs, torch.zeros(1, 2), torch.tensor([1.0]), torch.ones(1, 2), tokens=2.0, clip=0.3).backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 0] == 0
    assert logprobs.grad[0, 1].item() == pytest.approx(-0.9 / 2)


def test_kl_by_hand() -> None:
    logprobs, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.0]])
    mask = torch.ones(1, 2)
    loss = policy_loss(logprobs, logprobs, torch.zeros(1), mask, tokens=2.0, clip=0.3, kl=0.1, reference=reference)
    assert loss.item() == pytest.approx(0.1 * (math.exp(-0.5) + 0.5 - 1) / 2)
    with pytest.raises(ValueError, match="reference"):
        policy_loss(logprobs, logprobs, torch.zeros(1), mask, tokens=2.0, clip=0.3, kl=0.1)


def test_shards_add_up() -> None:
    torch.manual_seed(0)
    logprobs, behaviour = torch.randn(4, 5), torch.randn(4, 5)
    advantage, mask = torch.randn(4), (torch.rand(4, 5) > 0.3).float()
    tokens = float(mask.sum())
    whole = policy_loss(logprobs, behaviour, advantage, mask, tokens=tokens, clip=0.2)
    parts = [policy_loss(logprobs[r::2], behaviour[r::2], advantage[r::2], mask[r::2], tokens=tokens, clip=0.2) for r in range(2)]
    torch.testing.assert_close(whole, parts[0] + parts[1])
