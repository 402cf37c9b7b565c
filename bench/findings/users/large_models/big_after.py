"""User 5: phases of a publish of a large model. options: load (none|model), steps."""
import ctypes, json, mmap, os, resource, sys, time
import torch
import trainshed as C
from transformers import AutoModelForCausalLM
P = C.connect(); torch.set_num_threads(1)
def rss():
    d = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines() if l.startswith(("VmRSS", "VmHWM", "RssAnon", "RssShmem", "RssFile")))
    return {k: int(v.split()[0]) // 1024 for k, v in d.items()}
def reset(): open("/proc/self/clear_refs", "w").write("5")
def log(*a): print(*a, flush=True)
T = {}
inner = C.write_snapshot
def timed(*a):
    t = time.perf_counter(); inner(*a); T["write"] = time.perf_counter() - t
C.write_snapshot = timed
fa = os.posix_fallocate
def falloc(*a):
    t = time.perf_counter(); fa(*a); T["fallocate"] = time.perf_counter() - t
os.posix_fallocate = falloc
with P.lease("init"):
    t = time.perf_counter(); model = AutoModelForCausalLM.from_pretrained(P.model, dtype=getattr(torch, P.options.get("dtype", "float32"))); log(f"load model {time.perf_counter()-t:.2f}s", rss())
    n = sum(p.numel() * p.element_size() for p in model.parameters()); log("bytes", n, "params", sum(p.numel() for p in model.parameters()))
    t = time.perf_counter()
    if P.options.get("resident"): P.resident(model)
    log(f"resident on {time.perf_counter()-t:.2f}s", rss())
    t0 = time.perf_counter()
log(f"leave init lease {time.perf_counter()-t0:.2f}s", rss())
# raw: the same bytes into /dev/shm
src = torch.zeros(n, dtype=torch.uint8); src.random_(); path = "/dev/shm/trainers-raw"
for how in ("write", "mmap+memcpy", "write again (no fallocate)"):
    t = time.perf_counter()
    with open(path, "w+b", buffering=0) as f:
        if how == "write": os.ftruncate(f.fileno(), n)
        if how.startswith("mmap"):
            os.ftruncate(f.fileno(), n); m = mmap.mmap(f.fileno(), n); torch.frombuffer(m, dtype=torch.uint8).copy_(src); m = None
        else:
            v = memoryview(src.numpy()); o = 0
            while o < n: o += f.write(v[o:o + (1 << 30)])
    d = time.perf_counter() - t; os.unlink(path); log(f"raw {how}: {d:.3f}s {n/d/1e9:.2f} GB/s")
t = time.perf_counter(); dst = src.clone(); d = time.perf_counter() - t; log(f"raw memcpy in RAM: {d:.3f}s {n/d/1e9:.2f} GB/s"); del src, dst
for step in range(P.steps):
    with P.rollout(target=4) as r: r.generate([[3, 4]] * 4, max_new_tokens=2, ignore_eos=True)
    t = time.perf_counter()
    with P.lease("train"):
        t1 = time.perf_counter(); reset(); b = rss(); T.clear(); t2 = time.perf_counter()
        t3 = t2
        if P.options.get("thread"): pass
    t4 = time.perf_counter(); T.clear(); v = P.publish(model.state_dict); t5 = time.perf_counter(); a = rss(); log(f'   published AFTER the lease: held {t4-t1:.2f}s, publish {t5-t4:.3f}s')
    t3 = t3 + 1e-9
    log(f"step {step}: lease wait+onload {t1-t:.2f}s, publish v{v} {t3-t2:.3f}s of it write {T['write']:.3f} (fallocate {T['fallocate']:.3f}) answer {t3-t2-T['write']:.3f}; {n/(t3-t2)/1e9:.2f} GB/s; leave lease {t4-t3:.2f}s; RSS {b['VmRSS']} peak {a['VmHWM']} MiB; /dev/shm used {(lambda s: (s.f_blocks-s.f_bfree)*s.f_frsize>>20)(os.statvfs('/dev/shm'))} MiB")
    t = time.perf_counter()
    with P.rollout(target=4) as r:
        t1 = time.perf_counter(); S = r.generate([[3, 4]] * 4, max_new_tokens=2, ignore_eos=True)
    log(f"   first answer under v{sorted({s.version for x in S for s in x.spans})}: open {t1-t:.2f}s answered {time.perf_counter()-t:.2f}s")
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                c = open(f"/proc/{pid}/comm").read().strip()
                if c.startswith("big") and "engine" in c: log("   ", c, [l for l in open(f"/proc/{pid}/status").read().splitlines() if l.startswith(("VmHWM", "VmRSS", "RssShmem"))])
            except OSError: pass
    P.report(step, reward=1.0)
