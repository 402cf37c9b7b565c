"""Forks DataLoader workers (before and after connect, persistent), one subprocess.Popen that outlives us, multiprocessing spawn."""
import os, subprocess, sys, torch
from torch.utils.data import DataLoader, Dataset
class D(Dataset):
    def __len__(self): return 64
    def __getitem__(self, i): return torch.tensor([3, 4])
def main():
    before = iter(DataLoader(D(), 8, num_workers=2, persistent_workers=True)); next(before)
    from trainshed import connect
    p = connect()
    after = DataLoader(D(), 8, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    spawn = DataLoader(D(), 8, num_workers=1, multiprocessing_context="spawn")
    subprocess.Popen(["sleep", "300"], start_new_session=True)   # a daemon (wandb-service, ray ...), left behind
    for step in range(p.steps_done, p.steps):
        n = 0
        for batch in after:
            if n == 3: break
            with p.rollout(target=8) as r: r.generate(batch.tolist(), max_new_tokens=4, ignore_eos=True)
            n += 1
        for batch in spawn: break
        with p.lease("train"): pass
        print("step", step, flush=True)
        p.report(step, reward=1.0)
    print("done", flush=True)
if __name__ == "__main__": main()
