import torch
from transformers import AutoModelForCausalLM
from trainshed import connect
def main():
    p = connect()
    print("life starts at", p.steps_done, p.checkpoint_path, flush=True)
    with p.lease("init"):
        model = AutoModelForCausalLM.from_pretrained(p.model, dtype=torch.float32)
        p.resident(model)
    p.restore(model.state_dict)
    for step in range(p.steps_done, p.steps):
        with p.rollout(target=4) as r:
            try:
                s = r.generate([[5, 6]] * 4, max_new_tokens=4, ignore_eos=True)
                print("got", s[0].output_ids, s[0].logprobs, s[0].spans[0].version, flush=True)
            except Exception as error:
                print("rollout raised", type(error).__name__, error, flush=True); raise
        with p.lease("train"):
            with torch.no_grad():
                for q in model.parameters(): q.mul_(float("nan"))   # one bad step: the loss was NaN
            print("published", p.publish(model.state_dict), flush=True)
        p.report(step, loss=float("nan"))
