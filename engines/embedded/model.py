"""The model computes one forward step: `slots` rows, one token each, against a KV cache of fixed length. Its shape never changes, so bits repeat.

Prompts, and the tokens so far of a sample that comes from elsewhere, are replayed through the same step. No batch, no padding and no
prefill kernel ever differs, so a row's logits depend on its own tokens only: checked at start (`self_check`), bit by bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import linear, silu

from engines.embedded.architecture import Architecture


class NotExact(Exception):
    """On this machine a row's logits depend on its neighbours' tokens."""


@dataclass(frozen=True)
class _Layer:
    norm: torch.Tensor
    q: torch.Tensor
    q_bias: torch.Tensor | None
    k: torch.Tensor
    k_bias: torch.Tensor | None
    v: torch.Tensor
    v_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: torch.Tensor
    mlp_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    keys: torch.Tensor  # slots*kv_heads x context x head_dim
    values: torch.Tensor


class SlotModel:
    """A decoder over tensors that it does not own: `weights` by snapshot name, `kv` as layers x 2 x slots x kv_heads x context x head_dim."""

    def __init__(self, architecture: Architecture, weights: Mapping[str, torch.Tensor], kv: torch.Tensor) -> None:
        self.architecture = architecture
        self.slots, self.context = kv.shape[2], kv.shape[4]
        self._embedding = weights["model.embed_tokens.weight"]
        self._head = self._embedding if architecture.tied else weights["lm_head.weight"]
        self._norm = weights["model.norm.weight"]
        self._kv = kv
        self._layers = [_layer(weights, index, kv[index]) for index in range(architecture.layers)]
        device, dtype = kv.device, kv.dtype
        angles = torch.arange(self.context, dtype=torch.float32)[:, None] * architecture.rope_theta ** (
            -torch.arange(0, architecture.head_dim, 2, dtype=torch.float32) / architecture.head_dim
        )
        angles = torch.cat((angles, angles), dim=-1)
        sign = torch.cat((-torch.ones(architecture.head_dim // 2), torch.ones(architecture.head_dim // 2)))
        self._cos = angles.cos().to(device, dtype)
        self._sin = (angles.sin() * sign).to(device, dtype)  # with the sign of "rotate half", so that a roll does it
        hidden_after = torch.ones(self.context, self.context).triu(1).bool()
        self._mask = torch.zeros(self.context, self.context).masked_fill(hidden_after, -torch.inf).to(device, dtype)
        self._rows = (torch.arange(self.slots * architecture.kv_heads) * self.context).to(device)

    @torch.inference_mode()
    def step(self, tokens: list[int], positions: list[int]) -> torch.Tensor:
        """Feed each row its token at its position. Return the logits of what follows, slots x vocab, float32.

        A row in which nothing runs feeds any token at position 0: the next sample there begins by overwriting it.
        """
        arch, heads, groups = self.architecture, self.architecture.kv_heads, self.architecture.heads // self.architecture.kv_heads
        at = torch.tensor(positions, device=self._kv.device)
        where = self._rows + at.repeat_interleave(heads)
        cos, sin = self._cos[at].unsqueeze(1), self._sin[at].unsqueeze(1)
        mask = self._mask[at].repeat_interleave(heads, dim=0).unsqueeze(1)
        hidden = self._embedding[torch.tensor(tokens, device=self._kv.device)]
        scale = arch.head_dim**-0.5
        for layer in self._layers:
            inner = _rms(hidden, layer.norm, arch.eps)
            query = linear(inner, layer.q, layer.q_bias).view(self.slots, arch.heads, arch.head_dim)
            key = linear(inner, layer.k, layer.k_bias).view(self.slots, heads, arch.head_dim)
            value = linear(inner, layer.v, layer.v_bias)
            if layer.q_norm is not None and layer.k_norm is not None:
                query, key = _rms(query, layer.q_norm, arch.eps), _rms(key, layer.k_norm, arch.eps)
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
            layer.keys.view(-1, arch.head_dim).index_copy_(0, where, key.reshape(-1, arch.head_dim))
            layer.values.view(-1, arch.head_dim).index_copy_(0, where, value.view(-1, arch.head_dim))
            scores = torch.bmm(query.reshape(-1, groups, arch.head_dim), layer.keys.transpose(1, 2)) * scale + mask
            mixed = torch.bmm(torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype), layer.values)
            hidden = hidden + linear(mixed.view(self.slots, -1), layer.o)
            inner = _rms(hidden, layer.mlp_norm, arch.eps)
            hidden = hidden + linear(silu(linear(inner, layer.gate)) * linear(inner, layer.up), layer.down)
        return linear(_rms(hidden, self._norm, arch.eps), self._head).float()

    def clear(self, slot: int) -> None:
        """Zero a row's cache: masked entries count zero times, but zero times a NaN of a bad model is a NaN."""
        self._kv[:, :, slot].zero_()

    def self_check(self) -> None:
        """Run a few steps twice with other neighbours and in other rows. Raises NotExact when a bit of the logits differs."""
        vocab, slots = self.architecture.vocab, self.slots
        sequence = [(7 * index + 3) % vocab for index in range(min(4, self.context))]
        answers = []
        for trial, row in ((0, 0), (1, 0), (2, slots - 1), (3, slots // 2)):
            for slot in range(slots):
                self.clear(slot)
            steps = []
            for position, token in enumerate(sequence):
                tokens = [(trial * 31 + slot * 5 + position) % vocab for slot in range(slots)]
                tokens[row] = token
                steps.append(self.step(tokens, [position] * slots)[row])
            answers.append(torch.stack(steps))
        for slot in range(slots):
            self.clear(slot)
        if any(not torch.equal(answers[0], answer) for answer in answers[1:]):
            raise NotExact(
                "the same tokens gave other logits beside other neighbours or in another row; choose slots and sizes as powers of two"
            )


def _layer(weights: Mapping[str, torch.Tensor], index: int, kv: torch.Tensor) -> _Layer:
    prefix = f"model.layers.{index}"
    attention = f"{prefix}.self_attn"
    return _Layer(
        norm=weights[f"{prefix}.input_layernorm.weight"],
        q=weights[f"{attention}.q_proj.weight"],
        q_bias=weights.get(f"{attention}.q_proj.bias"),
        k=weights[f"{attention}.k_proj.weight"],
        k_bias=weights.get(f"{attention}.k_proj.bias"),
        v=weights[f"{attention}.v_proj.weight"],
        v_bias=weights.get(f"{attention}.v_proj.bias"),
        q_norm=weights.get(f"{attention}.q_norm.weight"),
        k_norm=weights.get(f"{attention}.k_norm.weight"),
        o=weights[f"{attention}.o_proj.weight"],
        mlp_norm=weights[f"{prefix}.post_attention_layernorm.weight"],
        gate=weights[f"{prefix}.mlp.gate_proj.weight"],
        up=weights[f"{prefix}.mlp.up_proj.weight"],
        down=weights[f"{prefix}.mlp.down_proj.weight"],
        keys=kv[0].flatten(0, 1),
        values=kv[1].flatten(0, 1),
    )


def _rms(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(hidden.dtype)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions; `sin` bears the sign of rotate-half, which is then a roll by half."""
    return heads * cos + heads.roll(heads.shape[-1] // 2, -1) * sin
