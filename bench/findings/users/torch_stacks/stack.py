"""User 2: DDP, FSDP2, LoRA, bf16, checkpointing; options.mode says which. REINFORCE on digits."""
import os, sys, json, time, traceback
import torch, torch.distributed as dist
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from trainshed import connect

P = connect(); O = P.options; mode = O["mode"]
torch.set_num_threads(1)
if P.world_size > 1:
    dist.init_process_group("gloo")
tok = Tokenizer.from_file(f"{P.model}/tokenizer.json"); prompt = tok.encode("d:").ids
def log(*a): print(f"[{P.rank}]", *a, flush=True)

with P.lease("init"):
    dtype = torch.bfloat16 if mode in ("bf16",) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(P.model, dtype=dtype)
    resident = [] if mode.endswith("_nores") else [model]
    if mode in ("ddp_naive", "ddp", "ddp_view", "ddp_view_nores"):
        net = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=mode.startswith("ddp_view"))
    elif mode.startswith("fsdp"):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, MixedPrecisionPolicy
        mesh = init_device_mesh("cpu", (P.world_size,))
        mp = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if mode == "fsdp_mp" else MixedPrecisionPolicy()
        for layer in model.model.layers: fully_shard(layer, mesh=mesh, mp_policy=mp)
        fully_shard(model, mesh=mesh, mp_policy=mp)
        net = model; resident = []
    elif mode.startswith("lora"):
        from peft import LoraConfig, get_peft_model
        net = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"]))
        resident = [net]
    elif mode == "compile":
        net = torch.compile(model, backend="eager")
    else:
        net = model
    if mode == "ckpt": model.gradient_checkpointing_enable()
    opt = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=5e-3)
    if mode == "fsdp_resident":
        P.resident(model, opt)
    P.resident(*resident, *( [opt] if resident else []))

def weights():
    if mode == "ddp_naive": return net.state_dict()
    if mode in ("ddp", "ddp_view", "ddp_view_nores"): return net.module.state_dict()
    if mode == "fsdp_naive": return model.state_dict()
    if mode.startswith("fsdp"):
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, StateDictOptions
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if mode == "lora_naive": return net.state_dict()
    if mode == "lora_adapter":
        from peft import get_peft_model_state_dict
        return get_peft_model_state_dict(net)
    if mode == "lora_merged":
        net.merge_adapter()
        try:
            return {k.removeprefix("base_model.model.").replace(".base_layer", ""): v.detach().clone()
                    for k, v in net.state_dict().items() if "lora_" not in k}
        finally:
            net.unmerge_adapter()
    if mode == "compile": return net.state_dict()
    return model.state_dict()

for step in range(P.steps_done, P.steps):
    n = 128
    with P.rollout(target=n) as r:
        S = r.generate([prompt] * n, max_new_tokens=8, ignore_eos=True)
    R = torch.tensor([sum(c.isdigit() for c in tok.decode(s.output_ids)) / 8 for s in S])
    versions = sorted({sp.version for s in S for sp in s.spans})
    with P.lease("train"):
        T = torch.tensor([s.prompt_ids + s.output_ids for s in S]); A = (R - R.mean()) / (R.std() + 1e-4)
        for part in range(4):
            mine = slice(part + 4 * P.rank, None, 4 * P.world_size)
            ids, adv = T[mine], A[mine, None]
            out = net(ids).logits[:, len(prompt) - 1:-1].float().log_softmax(-1).gather(-1, ids[:, len(prompt):, None]).squeeze(-1)
            loss = -(adv * out).mean(); opt.zero_grad(); loss.backward(); opt.step()
        try:
            t = time.time(); v = P.publish(weights); log("published", v, f"{time.time()-t:.3f}s")
        except BaseException as e:
            log("PUBLISH FAILED", type(e).__name__, str(e)[:500]); raise
    # check: do the engine's logprobs agree with the trainer's, i.e. did the weights arrive?
    P.report(step, reward=float(R.mean()))
    with P.rollout(target=4, number=1000 + step) as r:
        E = r.generate([prompt] * 4, max_new_tokens=8, ignore_eos=True)
    with P.lease("train"), torch.no_grad():
        ids = torch.tensor([s.prompt_ids + s.output_ids for s in E])
        out = net(ids).logits[:, len(prompt) - 1:-1].float().log_softmax(-1).gather(-1, ids[:, len(prompt):, None]).squeeze(-1)
        d = (out - torch.tensor([s.logprobs for s in E])).abs().max().item()
    if P.rank == 0: log("step", step, "reward", round(float(R.mean()), 4), "versions", versions, "max |trainer logprob - engine logprob|", f"{d:.2e}", "engine version", sorted({sp.version for s in E for sp in s.spans}))
