"""A small torch engine that speaks SGLang's HTTP dialect, so that the whole system runs and is tested without a GPU.

It is a program of its own (`python -m engines.embedded`). It behaves as SGLang 0.5.23 does where the supervisor and the gateway depend on it: its
refusals, what kills it, what a pause keeps. It knows `trainshed` (device memory) and nothing of the supervisor or the gateway.

    __main__.py        arguments, start, end
    server.py          routes that generate; control_routes.py: routes that pause, flush, release, resume and load
    wire.py            SGLang's native bodies; chat.py: OpenAI's; text.py: tokenizer, chat template, tool calls and reasoning in a text
    admission.py       the gate that a pause closes, and the way of a request to the compute thread and back
    compute.py         the one thread that touches the core
    core.py            the engine without HTTP and threads
    batching.py        which token each slot computes next (no torch)
    model.py           one forward step of fixed shape; sampling.py: the next token; architecture.py: what a model folder describes
    memory.py          two pools of device memory; snapshot.py: weights from a folder into them

The life of a request:

1. `server.generate` decodes the body; `wire.wishes` checks it and makes `Request`s (a Refusal is an HTTP error).
2. `RequestRunner.run` waits at the gate, then calls `core.submit` on the compute thread and yields answers as they grow.
3. Each step the thread takes `batch.feeds()` (one token a slot, prompts included), computes logits, chooses tokens and calls `batch.took`.
4. Finished requests, and now and then running ones that stream, go to the outbox, and from there back into the event loop.

Bits repeat: on a CPU there is one step shape in float32 on one thread, draws are seeded by sample and position, and what a sample has
already is replayed through the same step. So its tokens do not depend on neighbours, engine or interruptions; `self_check` tests it at start.
"""
