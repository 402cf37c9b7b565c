"""A script for `accelerate launch`: it says who accelerate takes it for, and who Trainshed does."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from trainshed import connect

accelerator = Accelerator(cpu=True)
pipeline = connect()
with pipeline.rollout(target=2, per_rank=True) as rollout:
    samples = rollout.generate([[3, 4]] * 2, max_new_tokens=4, ignore_eos=True)
with pipeline.lease("train"):
    pass
pipeline.report(0, reward=1.0)
found = {
    "main": accelerator.is_local_main_process,
    "local": accelerator.local_process_index,
    "rank": pipeline.rank,
    "of": [accelerator.num_processes, pipeline.world_size],
    "gpus": pipeline.gpus,
    "samples": len(samples),
}
Path(f"{sys.argv[1]}.{accelerator.process_index}").write_text(json.dumps(found))
