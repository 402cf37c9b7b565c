"""What limits write_snapshot: fallocate, source memory, write vs mmap, chunk sizes, parallelism. 1 GB of weights in 50 tensors (big.toml's shapes)."""
import ctypes, json, mmap, os, sys, time, threading, torch

from trainshed import write_snapshot
from trainshed.resident import Resident
from pathlib import Path
import shutil
torch.set_num_threads(1)
n = 1007296512; src = torch.empty(n, dtype=torch.uint8).random_(); path = "/dev/shm/trainers-raw"
def plain(fall, chunk=1 << 30, s=src):
    t = time.perf_counter(); fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
    if fall: os.posix_fallocate(fd, 0, n)
    t1 = time.perf_counter(); v = memoryview((ctypes.c_ubyte * n).from_address(s.data_ptr())).cast("B"); o = 0
    while o < n: o += os.write(fd, v[o:o + chunk])
    d = time.perf_counter() - t; os.close(fd); t2 = time.perf_counter(); os.unlink(path); return f"{d:.3f}s {n/d/1e9:.2f} GB/s (fallocate {t1-t:.3f}, unlink {time.perf_counter()-t2:.3f})"
def mapped(fall, threads=1):
    t = time.perf_counter(); fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
    os.posix_fallocate(fd, 0, n) if fall else os.ftruncate(fd, n)
    m = mmap.mmap(fd, n); d = torch.frombuffer(m, dtype=torch.uint8)
    if threads == 1: d.copy_(src)
    else:
        k = n // threads + 1; ts = [threading.Thread(target=lambda i=i: d[i*k:(i+1)*k].copy_(src[i*k:(i+1)*k])) for i in range(threads)]; [x.start() for x in ts]; [x.join() for x in ts]
    e = time.perf_counter() - t; del d; m.close(); os.close(fd); os.unlink(path); return f"{e:.3f}s {n/e/1e9:.2f} GB/s"
shapes = json.loads(open("shapes.json").read()) if os.path.exists("shapes.json") else None
def snapshot(state):
    f = Path("/dev/shm/trainers-snap"); shutil.rmtree(f, ignore_errors=True)
    t = time.perf_counter(); write_snapshot(f, state, Path(os.environ["MODEL"])); e = time.perf_counter() - t; t = time.perf_counter(); shutil.rmtree(f); return f"{e:.3f}s {n/e/1e9:.2f} GB/s (removing it {time.perf_counter()-t:.3f})"
from safetensors.torch import load_file
state = {k: v.clone() for k, v in load_file(os.environ["MODEL"] + "/model.safetensors").items()}
virt = torch.nn.Module(); 
for i, (k, v) in enumerate(state.items()): virt.register_buffer(k.replace(".", "_"), v.clone())
R = Resident("virtual:0"); R.add(type("M", (), {"parameters": lambda s: iter(()), "buffers": lambda s: virt.buffers()})())
for round in range(3):
    print("round", round)
    print("  write, no fallocate      ", plain(False)); print("  fallocate + write        ", plain(True)); print("  fallocate + write of 1 MiB", plain(True, 1 << 20))
    print("  mmap memcpy              ", mapped(False)); print("  fallocate + mmap memcpy  ", mapped(True)); print("  mmap, two threads        ", mapped(False, 2))
    print("  write_snapshot, host     ", snapshot(state))
    t = time.perf_counter(); R.onload(); on = time.perf_counter() - t
    print("  write_snapshot, virtual  ", snapshot(dict(zip(state, virt.buffers()))))
    t = time.perf_counter(); R.offload(); print(f"  resident onload {on:.3f}s offload {time.perf_counter()-t:.3f}s")
    sys.stdout.flush()
