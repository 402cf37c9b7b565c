"""A stand-in for gateway and engines in tests of the trainer: samples from the newest snapshot, in this process, seeded by sample."""

import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.harness.fake_supervisor import FakeGateway, FakeSupervisor, line


class Sampler:
    """`answer` for a FakeGateway: all samples of a request at once, by full forward passes of a fixed shape for each sample set."""

    def __init__(self, model: Path) -> None:
        self._base = model
        self._loaded: tuple[Path, Any] | None = None
        self._lock = threading.Lock()
        self.supervisor: FakeSupervisor | None = None

    def gateway(self) -> FakeGateway:
        return FakeGateway(self.answer)

    def answer(self, rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with self._lock, torch.no_grad():
            return self._answer(requests) if requests else []

    def _model(self) -> Any:
        versions = self.supervisor.versions if self.supervisor is not None else []
        path = versions[-1] if versions else self._base
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = (path, AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval())
        return self._loaded[1]

    def _answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        model = self._model()
        tokens = torch.tensor([request["input_ids"] for request in requests])
        length = requests[0]["sampling_params"]["max_new_tokens"]
        noise = torch.stack([_uniform(request["sampling_params"]["sampling_seed"], length) for request in requests])
        logprobs = []
        for position in range(length):
            scores = torch.log_softmax(model(tokens, use_cache=False).logits[:, -1], -1)
            chosen = (scores.double().exp().cumsum(-1) < noise[:, position, None]).sum(-1).clamp(max=scores.shape[-1] - 1)
            logprobs.append(scores.gather(-1, chosen[:, None]).squeeze(-1))
            tokens = torch.cat([tokens, chosen[:, None]], 1)
        values = torch.stack(logprobs, 1).tolist()
        outputs = tokens[:, -length:].tolist()
        return [line(request["sample"], outputs[row], values[row]) for row, request in enumerate(requests)]


def _uniform(seed: int, length: int) -> torch.Tensor:
    return torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
