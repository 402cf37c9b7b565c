"""This module is the arithmetic of GRPO: group-relative advantages, a clipped ratio, an optional KL term. Tensors in, tensors out."""

import torch
from torch import Tensor


def advantages(rewards: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Returns how much better each sample is than its group, [prompts, group]: (reward - mean) / (std + epsilon).

    `rewards`: [prompts, group]; NaN marks a sample without a reward, which counts in no mean and gets NaN. A group with fewer than
    two rewards has nothing to compare: 0.
    """
    known = ~rewards.isnan()
    count = known.sum(dim=1, keepdim=True)
    mean = rewards.nansum(dim=1, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(known, rewards - mean, 0.0)
    std = (deviation.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    relative = torch.where(count > 1, deviation / (std + epsilon), torch.zeros_like(deviation))
    return torch.where(known, relative, torch.nan)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Returns the log-probability of each token given those before it: `logits` [n, length, vocabulary], `tokens` [n, length] -> [n, length - 1]."""
    scores = torch.log_softmax(logits[:, :-1].float() / temperature, dim=-1)
    return scores.gather(-1, tokens[:, 1:, None]).squeeze(-1)


def policy_loss(
    logprobs: Tensor,
    behaviour: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    tokens: float,
    clip: float,
    kl: float = 0.0,
    reference: Tensor | None = None,
) -> Tensor:
    """Returns the sum over the masked tokens of -min(ratio A, clipped ratio A) + kl * KL, divided by `tokens`. Raises ValueError.

    `logprobs` (of the policy now), `behaviour` (of the engine that sampled) and `reference` are [n, length], `advantage` is [n]; `mask`
    is [n, length], 1 where a token counts. `tokens` is the count over all ranks, so that ranks' losses and gradients add up. KL is the
    unbiased estimate exp(r) - r - 1 with r = reference - logprobs.
    """
    ratio = torch.exp(torch.where(mask > 0, logprobs - behaviour, 0.0))
    weight = advantage[:, None]
    gain = torch.minimum(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight)
    loss = -gain
    if kl > 0:
        if reference is None:
            raise ValueError("a KL term needs the reference's log-probabilities")
        distance = torch.where(mask > 0, reference - logprobs, 0.0)
        loss = loss + kl * (torch.exp(distance) - distance - 1)
    return (loss * mask).sum() / tokens
