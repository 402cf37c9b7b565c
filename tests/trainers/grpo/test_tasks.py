import pytest

from trainers.grpo import tasks


def test_rewards_are_shares_of_eight() -> None:
    assert tasks.reward("parity", "e:", "02468246") == 1.0
    assert tasks.reward("parity", "e:", "1357ab24") == 0.25
    assert tasks.reward("parity", "o:", "13") == 0.25
    assert tasks.reward("class", "a:", "abcdefgh" * 9) == 1.0
    assert tasks.reward("class", "d:", "٣٤\u202e\ud800") == 0.0
    with pytest.raises(KeyError):
        tasks.reward("parity", "a:", "")


def test_prompts_depend_on_seed_and_rollout_alone() -> None:
    one = tasks.prompts("parity", 3, 0, 16)
    assert one == tasks.prompts("parity", 3, 0, 16)
    assert sorted(one) == ["e:"] * 8 + ["o:"] * 8
    assert len({tuple(tasks.prompts("parity", seed, rollout, 16)) for seed in range(3) for rollout in range(3)}) == 9
