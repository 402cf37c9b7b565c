"""PROTOTYPE of what Trainshed could ship as trainers/adapters/trl.py: any TRL trainer that generates (GRPO, RLOO), any number of ranks."""
import os
from contextlib import contextmanager
from transformers import TrainerCallback
from trainshed import connect

class Box(TrainerCallback):
    def __init__(self):
        self.pipeline = p = connect(); self.model = str(p.checkpoint_path or p.model); self.steps = p.steps
        self.output = str(p.directory / "trl"); self.number = p.steps_done; self.lease = None; self.dirty = False
    def enter(self):
        self.lease = self.pipeline.lease("train"); self.lease.__enter__()
    def leave(self):
        lease, self.lease = self.lease, None
        if lease is not None: lease.__exit__(None, None, None)
    def train(self, trainer):
        p = self.pipeline; self.trainer = trainer
        trainer._generate_single_turn = self.generate; trainer.add_callback(self)
        p.resident(trainer.model); p.restore(self.state)
        trainer.train(resume_from_checkpoint=str(p.checkpoint_path) if p.checkpoint_path else None)
    def state(self):
        return self.trainer.accelerator.get_state_dict(self.trainer.model_wrapped)   # DDP, FSDP and ZeRO-3 alike
    def generate(self, prompt_ids, images, multimodal, num_generations, has_tool_images=False):
        from accelerate.utils import gather_object
        a = self.trainer.args; p = self.pipeline
        parts = gather_object([prompt_ids]) if p.world_size > 1 else [prompt_ids]      # in the lease: it may be NCCL
        if self.dirty: p.publish(self.state); self.dirty = False                        # once a rollout, not once a step
        self.leave()
        flat = [x for part in parts for x in part]
        with p.rollout(target=len(flat), number=self.number) as r:
            S = r.generate(flat, max_new_tokens=a.max_completion_length, temperature=a.temperature, top_p=a.top_p, **(a.generation_kwargs or {}))
        self.number += 1; self.enter()
        start = sum(map(len, parts[: p.rank])); mine = S[start : start + len(prompt_ids)]
        return [s.output_ids for s in mine], [s.logprobs for s in mine]
    def on_train_begin(self, args, state, control, optimizer=None, **kw): self.pipeline.resident(optimizer)
    def on_step_end(self, args, state, control, **kw): self.dirty = True
    def on_save(self, args, state, control, **kw):
        self.pipeline.checkpoint(state.global_step - 1, os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))
    def on_log(self, args, state, control, logs=None, **kw):
        self.pipeline.report(state.global_step - 1, **{k.replace("/", "_"): float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float, str)) and k in ("reward", "loss", "grad_norm", "reward_std")})

@contextmanager
def shed():
    box = Box(); box.enter()
    try: yield box
    finally: box.leave()
