"""This module is the training loop: rollout, rewards, lease, epochs of clipped updates, publish, checkpoint. Every rank runs it.

Everything random is drawn from (seed, step), every sum has a fixed order, and each rank takes a fixed part of each minibatch:
the same run gives the same bits, interrupted or not, alone or beside others.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from trainshed import Pipeline, Refused, Sample
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

# Named so that a forkserver which preloads this module has paid for them; Auto* would import them at the first build.
from transformers.models.qwen2 import modeling_qwen2  # noqa: F401
from transformers.utils import logging

from trainers.grpo import checkpoint, tasks
from trainers.grpo.distributed import Ranks, join
from trainers.grpo.loss import advantages, policy_loss, token_logprobs
from trainers.grpo.settings import Settings
from trainers.rewards import Failure, Verifiers


@dataclass(frozen=True)
class Batch:
    """The samples of one rollout, right-padded: `tokens` [n, length]; `mask` and `behaviour` [n, length - 1]; `advantage` [n]."""

    tokens: Tensor
    mask: Tensor
    behaviour: Tensor
    advantage: Tensor
    reference: Tensor | None = None


def run(pipeline: Pipeline) -> None:
    """Runs one rank from its init lease to its last step. Raises ValueError for wrong options, and what the client raises."""
    settings = Settings.read(pipeline.options)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a log is no terminal
    if pipeline.device == "cpu":
        torch.set_num_threads(1)  # two threads give other bits, and are slower on shared cores
    with ExitStack() as stack:
        group = stack.enter_context(join(pipeline.rank, pipeline.world_size, pipeline.device))
        trainer = Trainer(pipeline, settings, group)
        judge = stack.enter_context(Judge(settings)) if pipeline.rank == 0 else None
        for step in range(pipeline.steps_done, pipeline.steps):
            if pipeline.stopping:
                return
            try:
                trainer.step(step, judge)
            except Refused as error:
                if error.code != "stopping":
                    raise
                return  # the last checkpoint is where a resumed run goes on


class Judge:
    """The verifiers of the task, in processes of their own."""

    def __init__(self, settings: Settings) -> None:
        self._task = settings.task
        self._verifiers = Verifiers("trainers.grpo.tasks:reward", limit_s=settings.verifier_limit_s, workers=settings.verifiers)

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self._verifiers.close()

    def rewards(self, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Returns the rewards, [n] float64, NaN for a sample that could not be judged. Raises RuntimeError when none could."""
        results = self._verifiers.score([(self._task, prompt, text) for prompt, text in zip(prompts, texts, strict=True)])
        failures = [result for result in results if isinstance(result, Failure)]
        if len(failures) == len(results):
            raise RuntimeError(f"no sample could be judged; the first: {failures[0].kind}: {failures[0].detail}")
        return torch.tensor([math.nan if isinstance(result, Failure) else result for result in results], dtype=torch.float64)


class Trainer:
    """One rank's model and optimizer, and how they take a step."""

    def __init__(self, pipeline: Pipeline, settings: Settings, group: Ranks) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._group = group
        self._metrics = pipeline.directory / "metrics.jsonl"
        self._tokenizer: Any = Tokenizer.from_file(str(Path(pipeline.model) / "tokenizer.json"))
        with pipeline.lease("init"):
            self._model: Any = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=torch.float32).train()
            self._reference: Any = None
            if settings.kl > 0:
                self._reference = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=torch.float32).requires_grad_(False)
                pipeline.resident(self._reference)
            self._parameters = [p for p in self._model.parameters() if p.requires_grad]
            betas = (settings.beta1, settings.beta2)
            self._optimizer = torch.optim.AdamW(self._parameters, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay)
            if pipeline.checkpoint_path is not None:
                checkpoint.load(pipeline.checkpoint_path, self._model, self._optimizer)
            pipeline.resident(self._model, self._optimizer)
            pipeline.restore(lambda: as_in_files(self._model))
        if pipeline.rank == 0:
            forget_steps(self._metrics, pipeline.steps_done)

    def step(self, step: int, judge: Judge | None) -> None:
        """Takes one step: a rollout and the update on it. Rank 0 alone has a `judge`."""
        pipeline, settings = self._pipeline, self._settings
        prompts = [p for p in tasks.prompts(settings.task, pipeline.seed, step, settings.prompts) for _ in range(settings.group)]
        sampling = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens, "ignore_eos": settings.ignore_eos}
        encoded = [self._tokenizer.encode(prompt).ids for prompt in prompts]
        with pipeline.rollout(target=len(prompts), number=step) as rollout:
            samples = rollout.generate(encoded, **sampling)
        rewards = torch.zeros(len(samples), dtype=torch.float64)
        if judge is not None:  # before the lease: nobody waits for a GPU that only waits for a verifier
            rewards = judge.rewards(prompts, [self._tokenizer.decode(sample.output_ids) for sample in samples])
        with pipeline.lease("train"):
            device = pipeline.device
            rewards = rewards.to(device)
            self._group.broadcast(rewards)
            batch = collate(samples, advantages(rewards.view(settings.prompts, settings.group)).flatten(), device)
            loss = self._update(batch, step)
            version = pipeline.publish(lambda: as_in_files(self._model))
            reward = float(rewards.nanmean())
        last = step + 1 == pipeline.steps
        if pipeline.rank == 0:
            figures = {"reward": reward, "loss": loss}
            record: dict[str, Any] = {"step": step, **figures, "version": version}
            if settings.hash_weights:
                record["weights"] = weights_hash(self._model)
            append_line(self._metrics, record)
            pipeline.report(step, **figures)
        if last or (step + 1) % settings.checkpoint_every == 0:
            path = pipeline.directory / "checkpoints"
            if pipeline.rank == 0:
                path = checkpoint.save(path, step, self._model, self._optimizer)
            pipeline.checkpoint(step, path)

    def _update(self, batch: Batch, step: int) -> float:
        """Makes the epochs of minibatches and returns the mean of the minibatches' losses (over all ranks)."""
        settings = self._settings
        if self._reference is not None:
            with torch.no_grad():
                reference = token_logprobs(self._reference(batch.tokens, use_cache=False).logits, batch.tokens, settings.temperature)
            batch = Batch(batch.tokens, batch.mask, batch.behaviour, batch.advantage, reference)
        losses = []
        for epoch in range(settings.epochs):
            order = permutation(self._pipeline.seed, step, epoch, len(batch.tokens)).to(batch.tokens.device)
            for chosen in torch.split(order, settings.minibatch):
                losses.append(self._minibatch(batch, chosen))
        return math.fsum(losses) / len(losses)

    def _minibatch(self, batch: Batch, chosen: Tensor) -> float:
        """Updates the weights on the chosen rows and returns the loss (over all ranks)."""
        settings, group = self._settings, self._group
        tokens = max(1.0, float(batch.mask[chosen].sum()))
        mine = chosen[group.rank :: group.world_size]
        loss = torch.zeros((), device=batch.tokens.device)
        if len(mine):
            ids = batch.tokens[mine]
            loss = policy_loss(
                token_logprobs(self._model(ids, use_cache=False).logits, ids, settings.temperature),
                batch.behaviour[mine],
                batch.advantage[mine],
                batch.mask[mine],
                tokens=tokens,
                clip=settings.clip,
                kl=settings.kl,
                reference=None if batch.reference is None else batch.reference[mine],
            )
            loss.backward()  # type: ignore[no-untyped-call]
        total = group.sum_gradients(self._parameters, loss)
        torch.nn.utils.clip_grad_norm_(self._parameters, settings.grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total


def collate(samples: Sequence[Sample], advantage: Tensor, device: str) -> Batch:
    """Puts prompt and answer of each sample into one row. Samples without a reward (advantage NaN) stay, masked out."""
    length = max(len(sample.prompt_ids) + len(sample.output_ids) for sample in samples)
    tokens = torch.zeros(len(samples), length, dtype=torch.long)
    mask = torch.zeros(len(samples), length - 1)
    behaviour = torch.zeros(len(samples), length - 1)
    for row, sample in enumerate(samples):
        start, end = len(sample.prompt_ids), len(sample.prompt_ids) + len(sample.output_ids)
        tokens[row, :end] = torch.tensor(sample.prompt_ids + sample.output_ids)
        mask[row, start - 1 : end - 1] = 1.0
        behaviour[row, start - 1 : end - 1] = torch.tensor(sample.logprobs)
    known = ~advantage.isnan()
    mask, weight = mask.to(device) * known[:, None], torch.where(known, advantage, 0.0).float()
    return Batch(tokens.to(device), mask, behaviour.to(device), weight)


def permutation(seed: int, step: int, epoch: int, count: int) -> Tensor:
    """Returns the order of the samples in one epoch, the same on every rank and in every life."""
    digest = hashlib.blake2b(b"order:%d:%d:%d" % (seed, step, epoch), digest_size=8).digest()
    return torch.randperm(count, generator=torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1))


def as_in_files(model: Any) -> dict[str, Tensor]:
    """Returns the weights under the names of the model's files: transformers holds all experts of a layer as one tensor, engines want them apart."""
    state = model.state_dict()
    named = dict(revert_weight_conversion(model, dict(state)))
    return {name: named.pop(name) for name in state if name in named} | named  # in order: of tied tensors the first is the one that is kept


def weights_hash(model: Any) -> str:
    """Returns sha256 over names and bytes of all weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line; floats as repr, so that runs can be compared bit by bit."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def forget_steps(path: Path, steps_done: int) -> None:
    """Removes the lines of steps that a restart does again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        try:
            done = json.loads(line)["step"] < steps_done
        except (ValueError, KeyError, TypeError):  # a death in the middle of a line
            done = False
        if done:
            kept.append(line)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text("".join(kept), "utf-8")
    os.replace(unfinished, path)
