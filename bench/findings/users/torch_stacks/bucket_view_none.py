"""Small reproducer, no supervisor: torchrun-like 2 ranks; Resident + DDP(gradient_as_bucket_view=True). Compares p.grad with the true mean gradient."""
import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
def run(rank, view):

    from trainshed.resident import Resident
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="24982", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo"); torch.set_num_threads(1); torch.manual_seed(0)
    m = torch.nn.Linear(64, 64); net = torch.nn.parallel.DistributedDataParallel(m, gradient_as_bucket_view=view)
    opt = torch.optim.SGD(m.parameters(), lr=0.0); R = Resident(f"virtual:{rank}"); R.add(m, opt)
    for lease in range(4):
        R.onload()
        for micro in range(2):
            torch.manual_seed(10 * lease + rank)
            x = torch.randn(8, 64)
            net(x).pow(2).mean().backward()
            true = torch.autograd.grad(m(x).pow(2).mean(), m.weight)[0]; dist.all_reduce(true.div_(2))
            if rank == 0: print(f"view={view} lease {lease} step {micro}: |grad - mean grad| / |mean grad| = {float((m.weight.grad - true).norm() / true.norm()):.3f}", flush=True)
            if micro == 0: opt.zero_grad(set_to_none=True)
        opt.zero_grad(set_to_none=True); R.offload()
    dist.destroy_process_group()
if __name__ == "__main__":
    for view in (True,): mp.spawn(run, (view,), nprocs=2)
