"""Smallest proof: after the second lease, DDP with gradient_as_bucket_view no longer averages. Prints a hash of each rank's weights."""
import hashlib, torch, torch.distributed as dist
from trainshed import connect
P = connect(); torch.manual_seed(0); torch.set_num_threads(1); dist.init_process_group("gloo")
with P.lease("init"):
    m = torch.nn.Linear(64, 64); net = torch.nn.parallel.DistributedDataParallel(m, gradient_as_bucket_view=P.options["view"])
    opt = torch.optim.AdamW(m.parameters(), lr=1e-2); P.resident(m, opt)
for step in range(3):
    with P.lease("train"):
        torch.manual_seed(10 * step + P.rank)  # each rank its own data
        opt.zero_grad(set_to_none=P.options["none"]); net(torch.randn(8, 64)).pow(2).mean().backward(); opt.step()
    print("lease", step, "rank", P.rank, hashlib.sha256(m.weight.detach().numpy().tobytes()).hexdigest()[:12], flush=True)
