"""An ordinary TRL script. The lines that Trainshed needs end with #T; a test counts them."""

import os

import torch
from datasets import Dataset
from peft import LoraConfig
from trainshed.trl import Shed  # T
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

torch.set_num_threads(1)


def digits(completions, **_):
    return [sum(character.isdigit() for character in text) / 8 for text in completions]


class Dies(TrainerCallback):
    """Ends the process inside the optimizer's step, in its first life."""

    def on_pre_optimizer_step(self, args, state, control, **more):
        if state.global_step == shed.pipeline.options.get("dies_at") and shed.pipeline.steps_done == 0:
            os._exit(9)


with Shed() as shed:  # T
    options, ranks = shed.pipeline.options, shed.pipeline.world_size
    config, kind = (RLOOConfig, RLOOTrainer) if options.get("kind") == "rloo" else (GRPOConfig, GRPOTrainer)
    args = config(
        output_dir=shed.output, max_steps=shed.steps,  #T
        per_device_train_batch_size=32 // ranks, num_generations=8, max_completion_length=8, learning_rate=5e-3,
        lr_scheduler_type="constant", beta=0.0, logging_steps=1, save_steps=1, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, save_total_limit=2, generation_kwargs={"ignore_eos": True},
    )  # fmt: skip
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(shed.model, dtype=torch.float32),  # T
        reward_funcs=digits,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["d:", "a:"] * 64}),
        processing_class=AutoTokenizer.from_pretrained(shed.model),  # T
        callbacks=[Dies()],
        peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"]) if options.get("lora") else None,
    )
    shed.train(trainer)  # T
