"""A gateway is the HTTP front of one pipeline: its URL never changes while engines come, sleep, load weights and die.

It is a process of its own (`python -m engines.gateway`, started by `supervisor.runtime.gateways`), so that tokens never pass through the
supervisor's loop. It may import `trainers.protocol` and nothing else of ours; it never imports torch, and `transformers` in one module. It does not decide
which engines are awake: the supervisor orders routes, drains and rollouts over an inherited socket pair, and the gateway reports what waits.

    __main__          arguments, sockets, the event loop; wires the parts below
    control_channel   frames from and to the supervisor: orders in; ready, answers and progress out
    shell             gives events and the time to the core, carries out its effects; holds the only tasks that talk to engines
    core/             decides: which sample goes to which engine, and what becomes of it (pure; no clock, no sockets)
    routes/           HTTP in: bodies into requests, answers and streams out, text and tokens
    model_files/      what the model's folder says: tokenizer, chat template, limits, defaults
    upstream/         HTTP out: one attempt on one engine in SGLang's dialect

`__main__` uses all of them; `routes` uses `shell` and `model_files`; `shell` uses `upstream` and `core`; everybody may use the data types of `core`.

The life of a sample, with a drain in the middle:

    1. A body arrives at a route, is decoded into a `Request` (token ids), and is asked under rollout and name: `Ask`.
    2. The core puts it into its rollout; it waits until an engine is routed. The supervisor sees it in `Progress` and wakes one.
    3. `Route` arrives; the core answers with the effect `Start`; the shell posts the request to the engine and gives back `Tokens`.
    4. `Drain` arrives: the core answers with `Abort`; the engine ends the request; the sample keeps its tokens and waits again.
    5. Another engine is routed: `Start` with prompt + tokens so far. Its tokens are appended; they get a span of their own.
    6. The engine finishes: `Deliver` to everybody who asked. A later asker of the same name gets the stored answer.

A gateway that dies loses all of this; the supervisor starts it again on the same listening socket, and clients repeat what is unfinished.
"""
