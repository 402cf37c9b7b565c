"""Two ranks. (1) each asks for its own half of a group, as DDP/TRL/OpenRLHF scripts do; (2) each takes the first 16 of 48 to finish."""
import hashlib, json, os
from trainshed import connect, SamplesFailed
P = connect(); h = lambda S: hashlib.sha256(json.dumps([s.output_ids for s in S]).encode()).hexdigest()[:10]
with P.rollout(target=16) as r:
    S = r.generate([[3, 4]] * 8, max_new_tokens=8, ignore_eos=True)
print(f"same prompt on both ranks: rank {P.rank} has {h(S)}", flush=True)
with P.lease("train"): pass
try:
    with P.rollout(target=16) as r:
        S = r.generate([[3 + P.rank, 4]] * 8, max_new_tokens=8, ignore_eos=True)
    print(f"own prompts: rank {P.rank} ok", flush=True)
except Exception as e: print(f"own prompts: rank {P.rank}: {type(e).__name__}: {e}", flush=True)
with P.rollout(target=16) as r:
    r.start([[3, 4]] * 48, max_new_tokens=24, ignore_eos=False); c = P._wire.changed
    with c:
        c.wait_for(lambda: len(r._results) >= 16); first = list(r._results)[:16]
    if P.rank: import time; time.sleep(0.1)
print(f"first 16 of 48: rank {P.rank}: {sorted(first)}", flush=True)
