"""The runtime acts: it turns what the scheduler decides into processes, sockets, memory and files, and what happens into events.

It decides nothing. A file here may import everything below (`attempt`, `observe`, `config`, `host`, `scheduler`, `engines`, `trainers`), and
nothing above: what the command line and the views contribute is handed in (`startup.Options`).

Who assembles what. `run` puts one run together in three phases, and is the only file that knows all the others:
  prepare   takes from the machine what may be refused: logs, journal, shared memory, GPUs, ports -> `Machine`
  wire      makes the objects below and connects them, without doing anything -> `Wired`
  serve     starts the tasks, then the loop; returns when every pipeline has ended and nothing of the run lives

The facts of a run do not change (`run_facts`: the tables, the paths, the environment of children). What changes has one owner:
  driver             the loop: queue of events -> `Scheduler.handle` -> actions begin -> observers see it. There is no lock
  perform            the table of actions: each kind of action is one call to the part that performs it
  group_lifecycle    `Groups`, the registry of live groups; starting, watching and ending one, and what it holds besides processes
  engines (+ `kinds`), ranks, gateways    what is particular about the three kinds of group, and the messages to and from them
  model_recipe       version 0 of a pipeline's weights, where a recipe makes it
  snapshots          later versions, by a `WeightTransport`, and checkpoints: what trainers hand over
  gpu_memory         whether a GPU is empty, by measurement; what is used, for those who look on
  watch              looks at what could hang without a word: our own loop, engines (by probes), ranks
  scheduler_spec     the configuration as the scheduler's facts
  startup            how a run was asked for, why it cannot begin, when everything has started
  operator_requests  signals and the control socket

The flow of one action, an engine's start:
  1. The scheduler returns `StartGroup` from `handle`; `Driver` calls `Performer.begin`, which returns work that takes time.
  2. `Engines.start` reserves ports (the lifecycle gives them back), makes an endpoint, and has its kind prepare files and commands.
  3. `GroupLifecycle.begin` spawns the processes held, has the journal write them down, releases them, and watches each one's exit.
  4. The kind says when the engine is ready. Whatever comes first decides: ready, an exit, the deadline, a `StopGroup` that interrupts it.
  5. The work returns one event that bears the action's id, `GroupReady` or `ActionFailed`, and the driver feeds it to the scheduler.
An exit later is an event of its own (`MemberExited`). `GroupLifecycle.end` answers `StopGroup` when every process is gone and the ports
can be bound; only then is given back what the group held.
"""
