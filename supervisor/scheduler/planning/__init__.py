"""Planning says which engines should be awake, and which trainer gets GPUs next. It emits no action: what to wake and to pause is the difference.

It knows neither records nor groups: it plans on a `View`, plain numbers that `scheduler/planner_view` makes of the records.

    planner       `plan(view)`: the engines that should be awake. `must_leave`: whose GPUs somebody needs
    packing       a first engine for as many pipelines as any assignment can serve, with the fewest moves
    costs         what a move costs, as measured, and how long a sample takes
    reservations  which lease requests come next, and the GPUs that engines must leave for them
    reasons       why an engine was given or denied; `Trace` collects the planner's reasons, `Explanation` is what others get

One plan, in steps:
 1. First engines: `packing.serve` gives one to as many pipelines as possible; an awake engine stays where it is if it can.
 2. Bids: each pipeline bids for one engine more, again and again, up to its tail cap. The rule for targets (`oldest-first`, `proportional`)
    says whose bid is served next. A bid keeps an engine that is awake, else takes free GPUs, else those of later bids; a weak bid
    (`Level.FREE_ONLY`) takes only what is free.
 3. Leftovers: what a wide engine leaves free when it loses one of its GPUs goes to whoever can use it.

Example: two pipelines with 64 unfinished samples, 8 at once on an engine, share 8 GPUs. The one that opened first has all 8 engines awake. The
other gets one first engine (step 1) and nothing more: its bids come later, and `explain` says `earlier bid`. When the first has 9 samples left,
its cap is 2, and the other one's bids take the rest. docs/scheduling.md has the rules in their order, and what they are worth.
"""
