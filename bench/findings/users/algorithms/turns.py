"""What a turn costs: n samples in one start, n starts of one sample from n threads, asyncio over HTTP. And the first-16 race of two ranks, and roles on the own GPU."""
import threading, time
import torch
from trainshed import connect
P = connect(); n = 400
if P.world_size == 1:
    m = torch.nn.Linear(512, 512); P.resident(m)
    with P.lease("critic"): print("lease('critic') has moved the actor on to the GPU:", P._residents._mover.on_device, "bytes", P._residents._mover.held, flush=True)
    for round in range(2):
        with P.rollout(target=n) as r:
            t = time.perf_counter(); r.generate([[3, 4]] * n, max_new_tokens=1, ignore_eos=True); a = time.perf_counter() - t
        with P.rollout(target=n) as r:
            t = time.perf_counter(); ts = [threading.Thread(target=lambda: r.generate([[3, 4]], max_new_tokens=1, ignore_eos=True)) for _ in range(n)]
            [x.start() for x in ts]; [x.join() for x in ts]; b = time.perf_counter() - t
        print(f"{n} samples: one start {a:.2f}s = {a/n*1e3:.2f} ms; {n} starts of one {b:.2f}s = {b/n*1e3:.2f} ms", flush=True)
else:
    for k in range(12):
        with P.rollout(target=16) as r:
            if P.rank: time.sleep(0.15)                      # a rank that is a little late, as ranks are
            r.start([[3, 4]] * 48, max_new_tokens=24, ignore_eos=False)
            with P._wire.changed: P._wire.changed.wait_for(lambda: len(r._results) >= 16); first = sorted(list(r._results)[:16])
            time.sleep(0.3)
        print(k, P.rank, first, flush=True)
