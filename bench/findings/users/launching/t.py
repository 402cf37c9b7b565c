import os, sys, json
print("argv", sys.argv, "python", sys.version.split()[0], {k: v for k, v in os.environ.items() if k in ("RANK","LOCAL_RANK","WORLD_SIZE","LOCAL_WORLD_SIZE","MASTER_PORT","TRAINSHED_FD","TRAINSHED_GPUS","CUDA_VISIBLE_DEVICES","TORCHELASTIC_RUN_ID")}, flush=True)
from trainshed import connect
p = connect()
print("connected", p.name, p.rank, p.world_size, p.gpus, p.device, flush=True)
for step in range(p.steps_done, p.steps):
    with p.rollout(target=8) as r:
        s = r.generate([[3, 4]] * 8, max_new_tokens=4, ignore_eos=True)
    print("rank", p.rank, "got", len(s), flush=True)
    with p.lease("train"):
        pass
    p.report(step, reward=1.0)
