"""User 1: an ordinary TRL script. Lines that Trainshed needs are marked #T."""
import os
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trainshed import connect                                                        #T

pipeline = connect()                                                                       #T
torch.set_num_threads(1)
ranks = pipeline.world_size                                                                #T
tokenizer = AutoTokenizer.from_pretrained(pipeline.model)


class Bridge(TrainerCallback):                                                             #T
    """TRL calls us from inside its loop: the lease is the complement of rollout_func."""

    def __init__(self):                                                                    #T
        self.lease = None                                                                  #T
        self.number = pipeline.steps_done                                                  #T

    def enter(self):                                                                       #T
        self.lease = pipeline.lease("train")                                               #T
        self.lease.__enter__()                                                             #T

    def leave(self):                                                                       #T
        if self.lease is not None:                                                         #T
            lease, self.lease = self.lease, None                                           #T
            lease.__exit__(None, None, None)                                               #T

    def rollout(self, prompts, trainer):                                                   #T
        ids = [tokenizer(p)["input_ids"] for p in prompts]                                 #T
        if ranks > 1:                                                                      #T
            from accelerate.utils import gather_object                                     #T
            everyone = gather_object([ids])                                                #T  in the lease: it may be NCCL
        else:
            everyone = [ids]                                                               #T
        self.leave()                                                                       #T
        flat = [p for part in everyone for p in part]                                      #T
        with pipeline.rollout(target=len(flat), number=self.number) as r:                  #T
            samples = r.generate(flat, max_new_tokens=trainer.args.max_completion_length,  #T
                                 temperature=trainer.args.temperature, ignore_eos=True)    #T
        self.number += 1                                                                   #T
        self.enter()                                                                       #T
        start = sum(len(part) for part in everyone[: pipeline.rank])                       #T
        mine = samples[start : start + len(ids)]                                           #T
        return {"prompt_ids": [s.prompt_ids for s in mine],                                #T
                "completion_ids": [s.output_ids for s in mine],                            #T
                "logprobs": [s.logprobs for s in mine]}                                    #T

    def on_pre_optimizer_step(self, args, state, control, **kw):
        if state.global_step == pipeline.options.get("dies_at") and pipeline.steps_done == 0: os._exit(9)

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kw):      #T
        pipeline.resident(optimizer)                                                       #T

    def on_step_end(self, args, state, control, model=None, **kw):                         #T
        pipeline.publish(trainer.accelerator.unwrap_model(model).state_dict)               #T
        pipeline.report(state.global_step - 1, loss=0.0)                                   #T

    def on_save(self, args, state, control, **kw):                                         #T
        path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")            #T
        pipeline.checkpoint(state.global_step - 1, path)                                   #T

    def on_log(self, args, state, control, logs=None, **kw):                               #T
        if logs and "reward" in logs:                                                      #T
            pipeline.report(state.global_step - 1, reward=float(logs["reward"]))           #T


def digits(completions, **kw):
    return [sum(c.isdigit() for c in text) / 8 for text in completions]


bridge = Bridge()                                                                          #T
bridge.enter()                                                                             #T
model = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=torch.float32)
if pipeline.checkpoint_path:                                                               #T  else version 0 would be published again
    model = AutoModelForCausalLM.from_pretrained(pipeline.checkpoint_path, dtype=torch.float32)  #T
args = GRPOConfig(
    output_dir=str(pipeline.directory / "trl"), max_steps=pipeline.steps, per_device_train_batch_size=64 // ranks,
    num_generations=16, max_completion_length=8, learning_rate=5e-3, lr_scheduler_type="constant", beta=0.0,
    logging_steps=1, save_steps=1, report_to=[], use_cpu=pipeline.device == "cpu", bf16=False, gradient_checkpointing=False,
    num_iterations=int(pipeline.options.get("iterations", 1)), disable_tqdm=True, save_total_limit=2,
)
data = Dataset.from_dict({"prompt": ["d:", "a:"] * 64})
trainer = GRPOTrainer(model=model, reward_funcs=digits, args=args, train_dataset=data, processing_class=tokenizer,
                      rollout_func=bridge.rollout, callbacks=[bridge])                     #T
pipeline.resident(trainer.model)                                                           #T
pipeline.restore(trainer.model.state_dict)                                                 #T
trainer.train(resume_from_checkpoint=str(pipeline.checkpoint_path) if pipeline.checkpoint_path else None)
bridge.leave()                                                                             #T
