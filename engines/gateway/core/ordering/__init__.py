"""This package decides which waiting sample is dispatched next, and to which engine.

A rollout is done when its longest sample is done, so the longest are started first. How long a sample will be is guessed from what is
free to know: what the client says (`expected_tokens`), a limit that must be reached, earlier samples of the same prompt, all earlier ones.
Where an engine is free for more than one sample, a session goes to its own engine, and a prompt to one that has its prefix in the cache.
The order never changes an answer, only when it comes.

It is pure, as all of `core`, and knows engines, records and samples, but neither attempts nor orders of the supervisor.

    lengths    guesses of lengths (log-normal), learned from samples that have ended
    forecast   tokens that a sample, or all of a rollout, are expected to need yet; groups of samples of one prompt
    order      the heap of waiting samples: `Place` is the sort key
    affinity   which engine has a session or a prefix
    waiting    all of them together: `Waiting.next(engines, now)` is what `dispatch` asks

A waiting sample is pushed with an estimate; when mates of its prompt have ended (1, 2, 4, 8 … of them) it is pushed again with a better
one, and the older entry in the heap is passed over. When the prior over all prompts changes (`Lengths.epoch`, rarely) the heap is sorted
anew. A sample whose session's engine is full is parked until that has room or is routable no more.
"""
