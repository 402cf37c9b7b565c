"""The host: processes, GPUs, ports, sockets and files of this machine, for whoever acts.

This package knows no scheduler and no configuration; it imports only the standard library, a few libraries and `trainers.protocol`. What it
offers is mechanism: it starts, signals, watches and measures, and decides nothing. Whoever calls it brings paths, commands and limits.

    processes/      starts groups of processes, ends them with everything they started, and guards us from above
    gpus/           says which GPUs there are and how much of their memory is in use, measured from outside
    claims.py       says which GPUs of this box which run holds, of all users; a claim ends with its process
    locked_file.py  files that say something of a living process to all users: claims, marks of ports
    ports.py        reserves windows of ports, and says who holds a port
    foreign.py      tells which processes we certainly did not start (it reads `ports` and `processes`)
    unix_socket.py  listens at a path for our own user alone
    channel.py      carries frames over a child's socket pair, and names a peer that does not play along
    disk.py         names a full disk
    atomic_file.py  replaces a file in one step
    regular_file.py opens what a child may have replaced, without waiting; the tail of a log

Rules that hold everywhere here:

- A number names nobody. A process is known by pid *and* start time, a signal goes through a verified pidfd, a GPU through its UUID.
- Nothing waits without a limit, and nothing that a child or a driver does can block the loop.
- A failed measurement is an exception, never a small number.
- What we take from the machine (ports, marks, descriptors, children) vanishes with us, however we end.

An engine's life, seen from here: `Ports.reserve` gives it a window; `Processes.spawn` starts its members, held, and releases them once they
are written down; `Group.exited` wakes whoever watches it; `Group.kill` ends it and confirms that nothing lives; `Ports.blocked` and a
`GpuMeter` say that its ports and GPUs are free; `Ports.release` gives the window back.
"""
