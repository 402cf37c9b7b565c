"""Flattened parameters (DeepSpeed ZeRO, Megatron's contiguous buffers, apex master weights): what Resident makes of them. No supervisor."""
import sys, torch
from trainshed.resident import Resident
torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
flat = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in m.parameters()]))
start = 0
for p in m.parameters():
    p.data = flat.data[start:start + p.numel()].view_as(p); start += p.numel()
opt = torch.optim.AdamW([flat], lr=0.1)
R = Resident("virtual:0"); R.add(m, opt)
def train():
    for p in m.parameters(): p.grad = None
    m(torch.ones(2, 8)).pow(2).mean().backward()
    flat.grad = torch.cat([p.grad.reshape(-1) for p in m.parameters()]); opt.step()
    return float((torch.cat([p.detach().reshape(-1) for p in m.parameters()]) - flat.detach()).abs().max())
for lease in range(3):
    R.onload(); print("lease", lease, "max |model - master| after the optimizer step", train(), "loss", float(m(torch.ones(2, 8)).pow(2).mean().detach())); R.offload()
# master weights that are only in the optimizer: are they moved at all?
m2 = torch.nn.Linear(4, 4); master = torch.nn.Parameter(m2.weight.detach().clone().float()); o2 = torch.optim.SGD([master], lr=0.1)
R2 = Resident("virtual:1"); R2.add(m2, o2); R2.onload(); print("master weight (only in param_groups) moved:", R2._pool.contains(master))
