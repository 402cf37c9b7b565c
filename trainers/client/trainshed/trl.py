"""TRL's trainers on Trainshed: `from trainshed.trl import Shed`, for every trainer that generates by itself (GRPO, RLOO), on any number of ranks.

    with Shed() as shed:
        model = AutoModelForCausalLM.from_pretrained(shed.model)
        trainer = GRPOTrainer(model, args=GRPOConfig(output_dir=shed.output, max_steps=shed.steps, …), …)
        shed.train(trainer)                # resumes by itself

TRL calls us from inside its loop. It trains inside a lease that lasts from one generation to the next; where it would generate, the weights are
published if a step has changed them, the lease is left, each rank asks for its own prompts (`per_rank`), and the lease is taken again. Models,
reference model and optimizer are resident: they leave the GPU with each lease.
What is saved is a checkpoint of the pipeline, so a killed trainer resumes from it; what is logged is reported.

A LoRA of peft is published merged: the weights that it changes are copied, changed and written; the model itself keeps its own, bit for bit.

TRL (1.16) has no public place for an engine of one's own but `rollout_func`, which RLOO does not have: `_generate_single_turn` is replaced on the
trainer. It gets the prompts of this rank as token ids; GRPO wants ids and log-probs, RLOO ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from transformers import TrainerCallback

import trainshed

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Shed(TrainerCallback):
    """A pipeline for one TRL trainer. Inside its `with` a lease is held, but while samples are generated.

    `pipeline`, `model` (version 0), `steps` (for `max_steps`) and `output` (for `output_dir`) are for the script.
    """

    def __init__(self) -> None:
        self.pipeline = trainshed.connect()
        self.model = self.pipeline.model
        self.steps = self.pipeline.steps
        self.output = str(self.pipeline.directory / "trl")
        self._trainer: Any = None
        self._lease: trainshed.Lease | None = None
        self._changed = False
        self._newest = self.pipeline.steps_done - 1

    def __enter__(self) -> Shed:
        self._enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.__exit__(kind, error, trace)

    def train(self, trainer: Any) -> None:
        """Trains to the end, from the pipeline's checkpoint where there is one."""
        self._trainer = trainer
        trainer._generate_single_turn = self._generate
        trainer.add_callback(self)
        reference = getattr(trainer, "ref_model", None)
        self.pipeline.resident(*(model for model in (trainer.model, reference) if model is not None))
        checkpoint = self.pipeline.checkpoint_path
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    # -- what TRL asks for, and its callbacks

    def _generate(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        """Returns the answers to this rank's prompts: ids and log-probs for GRPO, ids for RLOO."""
        training = bool(self._trainer.model.training)
        if self._changed and training:
            self.pipeline.publish(self._weights)
            self._changed = False
        self._leave()
        how: dict[str, Any] = {"target": len(prompt_ids), "per_rank": True}
        if training:
            self._newest = how["number"] = max(int(self._trainer.state.global_step), self._newest + 1)
        else:
            how["evaluation"] = True
        with self.pipeline.rollout(**how) as rollout:
            samples = rollout.generate(prompt_ids, **self._sampling())
        self._enter()
        ids = [sample.output_ids for sample in samples]
        if type(self._trainer).__name__.startswith("RLOO"):
            return ids
        return ids, [sample.logprobs for sample in samples]

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **more: Any) -> None:
        """The checkpoint is loaded: its weights are published, and the optimizer moves with the model."""
        if optimizer is not None:
            self.pipeline.resident(optimizer)
        self.pipeline.restore(self._weights)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The weights have changed: they are published before the next generation, once however many steps there were."""
        self._changed = True
        if self.pipeline.stopping:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """What was saved is where a restart resumes."""
        self.pipeline.checkpoint(state.global_step - 1, os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Figures are reported under TRL's names, with `_` for `/`."""
        figures = {name.replace("/", "_"): value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        figures.update({name: float(value) for name, value in (logs or {}).items() if isinstance(value, str) and _is_number(value)})
        self.pipeline.report(state.global_step - 1, **dict(list(figures.items())[: trainshed.MAX_FIGURES]))

    # -- the lease and the weights

    def _enter(self) -> None:
        self._lease = self.pipeline.lease("train")
        self._lease.__enter__()

    def _leave(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.__exit__(None, None, None)

    def _sampling(self) -> dict[str, Any]:
        args = self._trainer.args
        given = {name: getattr(args, name, None) for name in _SAMPLING}
        return {
            "max_new_tokens": args.max_completion_length,
            **{name: value for name, value in given.items() if value is not None and not (name == "top_k" and value == 0)},
            **(args.generation_kwargs or {}),
        }

    def _weights(self) -> Mapping[str, Any]:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        if hasattr(model, "peft_config"):
            return merged(model)
        state: Mapping[str, Any] = self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)  # DDP, FSDP and ZeRO-3 alike
        return state


def merged(model: Any) -> dict[str, Any]:
    """Returns the weights of a peft model with its active adapters merged into them; the model itself is not changed.

    Raises PublishFailed for an adapter that is no LoRA of plain linear layers, or whose parameters are sharded.
    """
    import torch

    state = {name: tensor for name, tensor in model.state_dict().items() if not _of_adapter(name)}
    with torch.no_grad():
        for name, layer in model.named_modules():
            if not hasattr(layer, "lora_A"):
                continue
            weight = f"{name}.base_layer.weight"
            if weight not in state or not hasattr(layer, "get_delta_weight") or hasattr(state[weight], "full_tensor"):
                raise trainshed.PublishFailed(
                    "unmerged_adapter", f"{name} is a {type(layer).__name__} that cannot be merged a tensor at a time"
                )
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    state[weight] = state[weight] + layer.get_delta_weight(adapter).to(state[weight].dtype)
    return state


def _of_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
