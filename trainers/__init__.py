"""The training side: what a user's script imports, how it is started, and the trainer that is built in.

A *trainer* is a group of rank processes, one for each training GPU. Its code is the user's or `trainers.grpo`; either way it talks to
the supervisor through `trainshed` and to nothing else of ours.

Parts, from what everybody knows to what nobody imports:

- `protocol`: what two processes must agree on (ids, frames, messages, seeds, paths). It imports nothing of ours.
- `client/trainshed`: the one package on a user's path. Its `__init__` is the client, one file; `resident` and `virtual_gpu` move a
  trainer's tensors; `launch` is the program that runs `module:function`. It imports nothing of ours but itself.
- `user_code`: which names are built in, the path of a user's code, and what a process must forget before it imports such code.
- `process_title`: engines and gateways name themselves for `ps`. `lossy_log`: a full disk costs them log lines, and nothing else.
- `remove_tree`: a folder goes with all that a trainer has put into it, however deep.
- `weights`: snapshots as the supervisor keeps them. The client writes a snapshot, `weights.adopt` inspects it and makes it a version.
- `rewards`: verifiers in processes that can be killed.
- `grpo`: the built-in trainer and its tiny model.

May not: know `supervisor` or `engines`. `weights`, `rewards` and `protocol` never import torch, because the supervisor and verifiers use them.

How a rank is started:

1. `supervisor.runtime.ranks` makes its environment: torchrun's variables, TRAINSHED_FD, and PYTHONPATH from `user_code.python_path`.
2. A `command` is executed as it stands. An `entry` is run by `trainshed.launch`: executed anew, or in a fork of the prewarmed pool, where
   `supervisor.host.processes.pool_child` first forgets what the pool imported of ours.
3. `launch` imports the module and calls the function, which calls `trainshed.connect()`.
4. The rank's exit is its answer: 0 means that all steps are done.
"""
