"""This module chooses the next token of each row, seeded by the sample and the position, never by the row, its neighbours or the time.

Token number `position` (counted from the first token of the prompt) of a sample with seed `seed` is drawn with the one uniform
number `uniform(seed, position)` by inverting the cumulative distribution in float64. So a continuation that brings prompt and
tokens so far to another engine goes on with the same draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import torch

GREEDY_BELOW: Final = 1e-6
"""Temperatures below this are greedy, as in SGLang."""


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits: the first of blake2b(seed, position), both as 8 bytes, little-endian, seed modulo 2**64."""
    key = (seed & (2**64 - 1)).to_bytes(8, "little") + position.to_bytes(8, "little")
    return (int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


@dataclass(frozen=True)
class Draw:
    """How one row's next token is chosen. `banned` tokens cannot be (their logits are minus infinity)."""

    seed: int
    position: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    banned: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @property
    def truncated(self) -> bool:
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True)
class Known:
    """The row's next token is known (a prompt or an earlier answer is replayed); only its log-probability may be wanted."""

    token: int


def choose(logits: torch.Tensor, rows: Sequence[Draw | Known | None]) -> tuple[list[int], list[float]]:
    """Return the next token of every row and its log-probability at the row's temperature (before top-p and top-k), as SGLang reports it.

    `logits` is slots x vocab, float32; `rows` has one entry a slot (None: nothing runs there, the answer means nothing). The arithmetic
    of a row is the same whatever the others are. A log-probability that is not finite says that the logits were not.
    """
    temperatures = [row.temperature if isinstance(row, Draw) and not row.greedy else 1.0 for row in rows]
    if any(isinstance(row, Draw) and row.banned for row in rows):
        logits = _banned(logits, rows)
    if any(temperature != 1.0 for temperature in temperatures):
        logits = logits / torch.tensor(temperatures, dtype=torch.float32, device=logits.device).unsqueeze(1)
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = _inverse_cdf(logits, [uniform(row.seed, row.position) if isinstance(row, Draw) else 0.5 for row in rows])
    special = [row is not None and (isinstance(row, Known) or row.greedy or row.truncated) for row in rows]
    if any(special):
        tokens = chosen.tolist()
        for index, row in enumerate(rows):
            if row is not None and special[index]:
                tokens[index] = _special(logits[index], row)
        chosen = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    picked = logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)
    return chosen.tolist(), picked.tolist()


def _inverse_cdf(logits: torch.Tensor, uniforms: list[float]) -> torch.Tensor:
    cdf = torch.softmax(logits.double(), dim=-1).cumsum(-1)
    thresholds = torch.tensor(uniforms, dtype=torch.float64, device=logits.device).unsqueeze(1) * cdf[:, -1:]
    return torch.searchsorted(cdf, thresholds, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)


def _special(logits: torch.Tensor, row: Draw | Known) -> int:
    if isinstance(row, Known):
        return row.token
    if row.greedy:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits.double(), dim=-1).sort(descending=True, stable=True)
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if row.top_k > 0:
        keep[row.top_k :] = False
    keep &= probabilities.cumsum(-1) - probabilities < row.top_p  # the token that crosses top_p still belongs
    keep &= probabilities >= row.min_p * probabilities[0]
    keep[0] = True
    cdf = (probabilities * keep).cumsum(-1)
    at = torch.searchsorted(cdf, uniform(row.seed, row.position) * cdf[-1:], right=True)
    return int(order[at.clamp_(max=len(order) - 1)])


def _banned(logits: torch.Tensor, rows: Sequence[Draw | Known | None]) -> torch.Tensor:
    logits = logits.clone()
    for index, row in enumerate(rows):
        if isinstance(row, Draw) and row.banned:
            logits[index, list(row.banned)] = -torch.inf
    return logits
