"""FSDP2, 1 GB, two ranks: publish by full_state_dict (today) and by a stream of tensors (prototype), float32 and bfloat16."""
import json, os, secrets, struct, time, ctypes, shutil, gc
from pathlib import Path
import torch, torch.distributed as dist
import trainshed as C
from transformers import AutoModelForCausalLM
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import get_model_state_dict, StateDictOptions
P = C.connect(); torch.set_num_threads(1); dist.init_process_group("gloo")
def hwm(reset=False):
    if reset: open("/proc/self/clear_refs", "w").write("5")
    d = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines() if l.startswith(("VmRSS", "VmHWM")))
    return int(d["VmRSS"].split()[0]) // 1024, int(d["VmHWM"].split()[0]) // 1024

def publish_stream(p, tensors, dtype=None):
    """tensors: [(name, DTensor or Tensor)]; whole tensors exist one at a time. What Pipeline.publish(iterable) could be."""
    with p._publishing:
        call = p._count("publish"); name = f"snapshot-{call}-{secrets.token_hex(4)}"; folder = p._weights / name; file = None
        if p.rank == 0:
            folder.mkdir(mode=0o700); entries, end = {"__metadata__": {"format": "pt"}}, 0
            for n, t in tensors:
                d = dtype if dtype is not None and t.is_floating_point() else t.dtype; size = t.numel() * d.itemsize
                entries[n] = {"dtype": C._DTYPES[str(d).split(".")[-1]], "shape": list(t.shape), "data_offsets": [end, end + size]}; end += size
            header = json.dumps(entries).encode(); header += b" " * (-(len(header) + 8) % 64)
            file = open(folder / "model.safetensors", "wb", buffering=0); os.posix_fallocate(file.fileno(), 0, 8 + len(header) + end)
            C._write_all(file, memoryview(struct.pack("<Q", len(header)) + header))
        for n, t in tensors:
            whole = t.full_tensor() if hasattr(t, "full_tensor") else t.detach()
            if p.rank == 0:
                flat = whole.to(dtype if dtype is not None and t.is_floating_point() else t.dtype).cpu().contiguous().reshape(-1); k = flat.numel() * flat.element_size()
                C._write_all(file, memoryview((ctypes.c_ubyte * k).from_address(flat.data_ptr())).cast("B")); del flat
            del whole
        if p.rank == 0:
            file.close()
            for s in sorted(Path(p.model).iterdir()):
                if s.suffix in C._COPIED and not s.name.endswith(".index.json"): shutil.copyfile(s, folder / s.name)
            p._wire.send("publish", call=call, name=name)
        a = p._wire.wait("publish", call)
        if a["type"] == "refused": raise C.PublishFailed(a["code"], a["reason"])
        return a["version"]

with P.lease("init"):
    model = AutoModelForCausalLM.from_pretrained(P.model, dtype=torch.float32); mesh = init_device_mesh("cpu", (P.world_size,))
    for l in model.model.layers: fully_shard(l, mesh=mesh)
    fully_shard(model, mesh=mesh); gc.collect(); print(P.rank, "sharded", hwm(), flush=True)
for how in ("full", "stream", "stream bf16", "full", "stream", "stream bf16"):
    with P.lease("train"):
        b = hwm(True); t = time.perf_counter()
        if how == "full": v = P.publish(lambda: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))
        else: v = publish_stream(P, [(n, p) for n, p in model.named_parameters()], torch.bfloat16 if "bf16" in how else None)
        e = time.perf_counter() - t; a = hwm()
    print(P.rank, f"{how}: v{v} {e:.2f}s, RSS {b[0]} peak {a[1]} MiB (+{a[1]-b[0]})", flush=True)
    with P.rollout(target=4) as r: S = r.generate([[3, 4]] * 4, max_new_tokens=2, ignore_eos=True)
    if P.rank == 0: print("   served by", sorted({s.version for x in S for s in x.spans}), flush=True)
P.report(0, reward=1.0)
