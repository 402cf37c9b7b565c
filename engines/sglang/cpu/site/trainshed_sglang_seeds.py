"""A plugin of SGLang (entry point `sglang.srt.plugins`): `--enable-deterministic-inference` on a CPU, for the seeds of samples.

SGLang seeds each sample there, and looks for kernels whose results do not depend on the batch; both need a GPU or its own compiled
kernels for CPUs. Here the sampler gets the same hash (MurmurHash3 of seed, position and token, 32 bits) in plain torch, the attention
that we use passes, and the other kernels stay: so a sample's randomness is its own, and a log-prob may differ in its last bits with the batch.
"""

from importlib import import_module
from typing import Any

SAMPLER_HASH = "sglang.srt.layers.sampler.murmur_hash32"
KERNELS = "sglang.srt.batch_invariant_ops.enable_batch_invariant_mode"
ATTENTION = "torch_native"
_WORD = 0xFFFFFFFF


def _rotated(x: Any, by: int) -> Any:
    return ((x << by) | (x >> (32 - by))) & _WORD


def _mixed(h: Any, block: Any) -> Any:
    block = _rotated((block * 0xCC9E2D51) & _WORD, 15)
    h = _rotated(h ^ ((block * 0x1B873593) & _WORD), 13)
    return (h * 5 + 0xE6546B64) & _WORD


def hash_of(seed: Any, positions: Any, columns: Any) -> Any:
    """Return the hash of (seed, position, column): tensors of n, n and m integers make n x m."""
    torch = import_module("torch")
    seed, positions, columns = (one.to(torch.int64) for one in (seed, positions, columns))
    h = torch.zeros_like(seed)
    for block in (seed & _WORD, (seed >> 32) & _WORD, positions & _WORD):
        h = _mixed(h, block)
    h = _mixed(h[:, None], columns[None, :] & _WORD) ^ 16
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _WORD
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _WORD
    return h ^ (h >> 16)


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in for kernels that are none here."""


def register() -> None:
    import_module("sglang.srt.arg_groups.choices").add_deterministic_attention_backend_choices([ATTENTION])
    hooks = import_module("sglang.srt.plugins.hook_registry")
    hooks.HookRegistry.register(SAMPLER_HASH, hash_of, hooks.HookType.REPLACE)
    hooks.HookRegistry.register(KERNELS, _nothing, hooks.HookType.REPLACE)
