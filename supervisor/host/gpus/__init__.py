"""The GPUs of this box: what they are, and how much of their memory is in use.

A lease is granted only on GPUs that were measured to be empty, so the answer comes from outside of the processes that use them: from the
driver, or from /proc. Nobody is asked what he holds. This package knows `trainers.protocol` (ids, the memory of a virtual GPU) and nothing else.

    meter.py      the interface: `Gpu`, `GpuMeter`, `Visible` (what a child is given so that it sees certain GPUs only)
    nvml.py       real GPUs through NVML, in a thread of its own with a deadline
    virtual.py    virtual GPUs: memory that our own engines and trainers hold in named memfds
    cycle.py      one cycle of allocation and release on a card, for `doctor`; it is also the program that allocates
    inventory.py  opens the one that a configuration asks for
    emptiness.py  judges a measurement: what is used, against what sleepers may keep
    residuals.py  learns what each group keeps while it has no lease, under a cap of its own

One measurement, in steps:

1. The caller lists the processes of every group (`processes.group.census`).
2. `GpuMeter.measure(gpus, pids)` returns `Usage`: bytes in use on each GPU beyond what was there before us, and the share of each group as far
   as the driver tells it. It raises MeasureFailed when the driver does not answer: an unknown GPU is not an empty one.
3. `Residuals.judge` compares it with what those who live there were seen to keep, and an allowance; the `Verdict` names holders.
4. `Residuals.learn` takes in what the leaver keeps, once an incarnation.

On a virtual GPU other programs measure 0 (`measures_others` is False): callers then say *unmeasured* and promise nothing about them.
"""
