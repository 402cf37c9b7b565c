"""A plugin of SGLang (entry point `sglang.srt.plugins`): mixtures of experts with `--ep-size` above 1 on a CPU.

With expert parallelism SGLang marks an expert of another rank as -1; its code for CPUs takes that for an index and dies at the first
batch. So each pair of token and local expert becomes a row of its own with one expert, and the rows are added up again.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

TARGET = "sglang.srt.layers.moe.fused_moe_native.moe_forward_native"


def local_experts_only(forward: Callable[..., Any], layer: Any, x: Any, chosen: Any, config: Any) -> Any:
    """`forward` on the experts of this rank; the others' part is 0 here, and is added by the all-reduce that follows."""
    torch = import_module("torch")
    token, column = (chosen.topk_ids >= 0).nonzero(as_tuple=True)
    if len(token) == chosen.topk_ids.numel():
        return forward(layer, x, chosen, config)
    result = torch.zeros(x.shape, dtype=torch.float32)
    if len(token):
        ids, weights = chosen.topk_ids[token, column][:, None], chosen.topk_weights[token, column][:, None]
        result.index_add_(0, token, forward(layer, x[token], chosen._replace(topk_ids=ids, topk_weights=weights), config).float())
    return result.to(x.dtype)


def register() -> None:
    hooks = import_module("sglang.srt.plugins.hook_registry")
    hooks.HookRegistry.register(TARGET, local_experts_only, hooks.HookType.AROUND)
