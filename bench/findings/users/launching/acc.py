import os; from accelerate import Accelerator
a = Accelerator(cpu=True); print("RANK", os.environ["RANK"], "process", a.process_index, "of", a.num_processes, "local", a.local_process_index, "is_local_main", a.is_local_main_process, "distributed_type", a.distributed_type, flush=True)
from trainshed import connect
p = connect(); print("connected", p.rank, p.world_size)
