"""User 4: options.mode picks the algorithm. Every line marked #W is a workaround for something that the client lacks."""
import json, os, queue, sys, threading, time, urllib.request
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from trainshed import connect, SamplesFailed, Refused

P = connect(); O = P.options; mode = O["mode"]; torch.set_num_threads(1)
tok = Tokenizer.from_file(f"{P.model}/tokenizer.json"); enc = lambda s: tok.encode(s).ids
def log(*a): print(f"[{P.rank}]", *a, flush=True)
with P.lease("init"):
    model = AutoModelForCausalLM.from_pretrained(P.model, dtype=torch.float32)
    opt = torch.optim.AdamW(model.parameters(), lr=5e-3)
    P.resident(model, opt)

def reward(s): return sum(c.isdigit() for c in tok.decode(s.output_ids)) / 8
def update(samples, R, behaviour=False):
    A = (R - R.mean()) / (R.std() + 1e-4)
    L = max(len(s.prompt_ids) + len(s.output_ids) for s in samples)
    T = torch.zeros(len(samples), L, dtype=torch.long); M = torch.zeros(len(samples), L - 1)
    for i, s in enumerate(samples):
        ids = s.prompt_ids + s.output_ids; T[i, :len(ids)] = torch.tensor(ids); M[i, len(s.prompt_ids) - 1: len(ids) - 1] = 1
    for part in range(4):
        k = slice(part, None, 4)
        lp = model(T[k]).logits[:, :-1].log_softmax(-1).gather(-1, T[k][:, 1:, None]).squeeze(-1)
        loss = -(A[k, None] * lp * M[k]).sum() / M[k].sum().clamp(min=1); opt.zero_grad(); loss.backward(); opt.step()
    return float(loss.detach())

if mode == "offpolicy":          # one step off policy: rollout n+1 is generated while n is trained
    def begin(n):
        r = P.rollout(target=128, number=n); r.__enter__()                                   #W a rollout is a `with`: cannot cross steps
        r.start([enc("d:")] * 128, max_new_tokens=8, ignore_eos=True); return r
    nxt = begin(P.steps_done)
    for step in range(P.steps_done, P.steps):
        r = nxt; t0 = time.time(); S = r.samples(); r.__exit__(None, None, None)             #W
        waited = time.time() - t0
        nxt = begin(step + 1) if step + 1 < P.steps else None                                # must be before the lease if engines share every GPU
        with P.lease("train"):
            R = torch.tensor([reward(s) for s in S]); update(S, R); time.sleep(O.get("train_s", 0)); v = P.publish(model.state_dict)
        log("step", step, "reward", round(float(R.mean()), 4), "sample versions", sorted({sp.version for s in S for sp in s.spans}), "published", v, f"waited {waited:.2f}")
        P.report(step, reward=float(R.mean()))
elif mode == "offpolicy_inside":  # the same, but opened inside the lease (as a thread of an async trainer would)
    for step in range(P.steps_done, P.steps):
        with P.lease("train"):
            try:
                with P.rollout(target=16, number=step) as r: S = r.generate([enc("d:")] * 16, max_new_tokens=8, ignore_eos=True)
                log("step", step, "opened inside a lease:", len(S))
            except Refused as e: log("refused", e)
        P.report(step, reward=1.0)
elif mode == "dapo":              # drop groups without variance, ask for more until 8 groups are there
    G, WANT = 8, 8; kinds = ["d:", "a:"]
    for step in range(P.steps_done, P.steps):
        kept, asked = [], 0
        with P.rollout(target=WANT * G) as r:
            while len(kept) < WANT and asked < 40:
                need = WANT - len(kept)
                S = r.generate([enc(kinds[(asked + i) % 2]) for i in range(need) for _ in range(G)], max_new_tokens=2, ignore_eos=True); asked += need
                for g in range(need):
                    group = S[g * G:(g + 1) * G]; rw = [float(tok.decode(s.output_ids)[:1].isdigit()) for s in group]
                    if min(rw) < max(rw): kept.append((group, rw))
        with P.lease("train"):
            S = [s for g, _ in kept for s in g]; R = torch.tensor([x for _, rw in kept for x in rw]); update(S, R); P.publish(model.state_dict)
        log("step", step, "groups asked", asked, "kept", len(kept), "reward", round(float(R.mean()), 3)); P.report(step, reward=float(R.mean()))
elif mode == "oversample":        # ask 128, use the first 64 that finish, abort the rest
    for step in range(P.steps_done, P.steps):
        t0 = time.time()
        with P.rollout(target=64) as r:
            idx = r.start([enc("d:")] * 128, max_new_tokens=O.get("tokens", 24), ignore_eos=False)
            S = r.first(64)                                                                   # four lines with private attributes, before
            first = [s.index for s in S]
        t1 = time.time()
        every = r.samples(); late = [s for s in every if s.index not in set(first)]
        log("step", step, f"{t1-t0:.2f}s for 64; of the other", len(late), "aborted", sum(s.finish_reason["type"] == "abort" for s in late), f"and samples() after the close took {time.time()-t1:.2f}s")
        with P.lease("train"):
            R = torch.tensor([reward(s) for s in S]); update(S, R); P.publish(model.state_dict)
        P.report(step, reward=float(R.mean()))
elif mode == "agent":             # three turns a trajectory, a tool in between, one session each
    def trajectory(r, i, out):
        ids = enc("d:")
        turns = []
        for turn in range(3):
            k = r.start([ids], max_new_tokens=4, ignore_eos=True, session=f"game-{r.number}-{i}")
            s = r.samples(k)[0]; turns.append((k[0], s))
            time.sleep(O.get("tool_s", 0.05))                                                 # the tool
            ids = ids + s.output_ids + enc("=")
        out[i] = (turns, ids)
    for step in range(P.steps_done, P.steps):
        out = {}
        with P.rollout(target=O.get("target", 16)) as r:
            ts = [threading.Thread(target=trajectory, args=(r, i, out)) for i in range(16)]
            [t.start() for t in ts]; [t.join() for t in ts]
        with P.lease("train"):
            S = [t[-1][1] for t, _ in (out[i] for i in range(16))]; R = torch.tensor([reward(s) for s in S]); update(S, R); P.publish(model.state_dict)
        engines = [sorted({sp.engine for _, s in out[i][0] for sp in s.spans}) for i in range(16)]
        log("step", step, "sample indexes of trajectory 0..3", [[k for k, _ in out[i][0]] for i in range(4)], "ids hash", hash(tuple(tuple(out[i][1]) for i in range(16))) % 10**8, "sessions on one engine", sum(len(e) == 1 for e in engines))
        P.report(step, reward=float(R.mean()))
elif mode == "trajectories":      # the same with what the client has for it since: samples named by (trajectory, turn), demand in trajectories
    def play(r, i):
        with r.trajectory(i) as game:
            ids = enc("d:")
            for turn in range(3):
                ids = ids + game.generate(ids, max_new_tokens=4, ignore_eos=True).output_ids + enc("=")
                time.sleep(O.get("tool_s", 0.05))
    for step in range(P.steps_done, P.steps):
        with P.rollout(trajectories=O.get("target", 16)) as r:
            ts = [threading.Thread(target=play, args=(r, i)) for i in range(16)]
            [t.start() for t in ts]; [t.join() for t in ts]
            S = r.samples()
        with P.lease("train"):
            R = torch.tensor([reward(s) for s in S]); update(S, R); P.publish(model.state_dict)
        log("step", step, "ids hash", hash(tuple(tuple(s.output_ids) for s in S)) % 10**8)
        P.report(step, reward=float(R.mean()))
elif mode == "roles":             # critic on GPU 1 while the actor is on 0
    with P.lease("critic"): critic = torch.nn.Linear(4, 1)
    for step in range(P.steps_done, P.steps):
        with P.rollout(target=32) as r: S = r.generate([enc("d:")] * 32, max_new_tokens=8, ignore_eos=True)
        with P.lease("critic") as lease:
            log("critic: device", P.device, "gpus", P.gpus, "roles", lease.roles, "resident is on:", P._residents._mover.on_device)
            lease.become("train")
            log("train: resident is on:", P._residents._mover.on_device)
            R = torch.tensor([reward(s) for s in S]); update(S, R); P.publish(model.state_dict)
        P.report(step, reward=float(R.mean()))
elif mode == "eval":              # an evaluation between steps, at temperature 0
    for step in range(P.steps_done, P.steps):
        with P.rollout(target=32, number=step) as r: S = r.generate([enc("d:")] * 32, max_new_tokens=8, ignore_eos=True)
        with P.lease("train"):
            R = torch.tensor([reward(s) for s in S]); update(S, R); P.publish(model.state_dict)
        with P.rollout(target=8, number=P.steps + step) as r: E = r.generate([enc("d:"), enc("a:")] * 4, max_new_tokens=8, temperature=0.0, ignore_eos=True)
        P.report(step, reward=float(R.mean()), eval_reward=sum(reward(s) for s in E) / 8)
        path = P.directory / f"{step}"; path.write_text(""); P.checkpoint(step, path)
elif mode == "variable":          # SFT warm-up of 3 steps, then RL until the reward is there, at most 50 steps
    with P.lease("train"):
        for i in range(3):
            ids = torch.tensor([enc("d:12345678")] * 8); loss = model(ids, labels=ids).loss; opt.zero_grad(); loss.backward(); opt.step()
        v = P.publish(model.state_dict); log("sft published", v)
    for step in range(P.steps_done, P.steps):
        with P.rollout(target=64) as r: S = r.generate([enc("d:")] * 64, max_new_tokens=8, ignore_eos=True)
        with P.lease("train"):
            R = torch.tensor([reward(s) for s in S]); update(S, R); P.publish(model.state_dict)
        P.report(step, reward=float(R.mean())); log(step, float(R.mean()))
        if R.mean() > 0.6: log("early end at step", step); break
log("done")
