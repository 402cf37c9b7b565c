"""What naive publishes do to real SGLang: refused, swallowed, or deadly?"""
import torch
from transformers import AutoModelForCausalLM
from trainshed import connect
P = connect(); torch.set_num_threads(1)
with P.lease("init"): m = AutoModelForCausalLM.from_pretrained(P.model, dtype=torch.float32)
base = {k: v for k, v in m.state_dict().items() if k != "lm_head.weight"}
def attempt(name, sd):
    if P.steps_done: return
    try: out = f"published v{P.publish(sd)}"
    except Exception as e: print(name, "->", type(e).__name__, str(e)[:260], flush=True); return
    try:
        with P.rollout(target=2) as r: S = r.generate([[3, 4]] * 2, max_new_tokens=3, temperature=0.0, ignore_eos=True)
        ids = torch.tensor([S[0].prompt_ids + S[0].output_ids]); lp = m(ids).logits[:, 1:-1].log_softmax(-1).gather(-1, ids[:, 2:, None]).squeeze()
        print(name, "->", out, "served by", sorted({s.version for x in S for s in x.spans}), f"max logprob difference {float((lp - torch.tensor(S[0].logprobs)).abs().max()):.2e}", flush=True)
    except Exception as e: print(name, "->", out, "then", type(e).__name__, str(e)[:200], flush=True)
if P.gpus and not (P.directory / "once").exists():
    (P.directory / "once").write_text("")
    with torch.no_grad(): m.model.norm.weight.mul_(1.5); m.model.layers[0].mlp.up_proj.weight.mul_(1.3)   # so that old weights are told from new ones
    attempt("module. prefix", {f"module.{k}": v for k, v in base.items()})
    attempt("_orig_mod. prefix", {f"_orig_mod.{k}": v for k, v in base.items()})
    attempt("peft adapter only", {f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.weight": torch.zeros(8, 64) for i in range(2)})
    attempt("only the trained layer (partial)", {k: v for k, v in base.items() if "mlp" in k})
    attempt("bfloat16", {k: v.bfloat16() for k, v in base.items()})
    attempt("float32, right", base)
    attempt("padded vocabulary", {**base, "model.embed_tokens.weight": torch.cat([base["model.embed_tokens.weight"], torch.zeros(64, 64)])})
    attempt("transposed up_proj", {**base, "model.layers.0.mlp.up_proj.weight": base["model.layers.0.mlp.up_proj.weight"].t().contiguous()})
