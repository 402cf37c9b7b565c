"""A trainer whose ranks a launcher has made: each writes down who it is and what it got. With `stay` it stays, with `deaf` it ignores TERM and INT, too."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from trainshed import NotSupervised, Pipeline, connect

pipeline = connect()
if sys.argv[2:] == ["deaf"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with pipeline.rollout(target=4 * pipeline.world_size) as rollout:
    samples = rollout.generate([[3, 4]] * (4 * pipeline.world_size), max_new_tokens=4, ignore_eos=True)
with pipeline.lease("train"):
    pass
pipeline.report(0, reward=1.0)
again = ""
try:
    from trainshed import _dialled

    Pipeline(_dialled(os.environ["TRAINSHED_SOCKET"]), pipeline.rank, world_size=pipeline.world_size, token=os.environ["TRAINSHED_TOKEN"])
except NotSupervised as error:
    again = str(error)
names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_PORT")
found = {
    "who": {name: os.environ.get(name) for name in names},
    "world_size": pipeline.world_size,
    "gpus": pipeline.gpus,
    "ids": [sample.output_ids for sample in samples],
    "again": again,
}
Path(f"{sys.argv[1]}.{pipeline.rank}").write_text(json.dumps(found))
while sys.argv[2:]:
    time.sleep(0.1)
