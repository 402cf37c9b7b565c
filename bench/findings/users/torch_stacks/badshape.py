import torch
from transformers import AutoModelForCausalLM
from trainshed import connect
P = connect()
with P.lease("init"): m = AutoModelForCausalLM.from_pretrained(P.model, dtype=torch.float32)
sd = dict(m.state_dict()); k = "model.embed_tokens.weight"; sd[k] = torch.cat([sd[k], torch.zeros(64, sd[k].shape[1])])   # a vocabulary padded to a multiple, as Megatron's is
sd.pop("lm_head.weight", None)
print("published", P.publish(sd), flush=True)
with P.rollout(target=4) as r: print(len(r.generate([[3, 4]] * 4, max_new_tokens=2)), flush=True)
