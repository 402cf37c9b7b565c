"""An engine is one model replica that serves rollouts: anything that speaks SGLang's HTTP control dialect.

    control.py        the control dialect: pause, wake, load weights, health, canary; no other file knows it. `control_http.py` carries its calls
    lifecycle/        the states of an engine as a table, its health, the shape of its group of processes
    sglang/           SGLang's command line for each version; `cpu/` makes an environment in which it runs without a GPU
    embedded/         a small torch engine that speaks the same dialect, on a CPU, a virtual GPU or a real one
    gateway/          the HTTP endpoint of a pipeline: a URL that never changes, in front of engines that come and go

Nothing here decides which engine lives or who holds a GPU: that is `supervisor.scheduler`. Nothing here starts a process: that is
`supervisor.runtime` (`kinds/` says how, for each kind of engine). `gateway`, `embedded` and `control` know nothing of each other; they agree
on `trainers.protocol`. The gateway and `control` never import torch.

A request, seen from here: a trainer posts it to the gateway; `gateway/core` gives it to an engine that is routed; the engine answers in a
stream; when it is drained or dies, the gateway continues the request elsewhere, with the tokens so far. A publish, seen from here: the
supervisor unroutes an engine, `control` has it load the new snapshot, and the engine says which version it has before it is routed again.
"""
