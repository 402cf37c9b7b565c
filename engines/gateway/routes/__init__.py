"""The routes are the gateway's HTTP side towards clients: bodies in, answers and streams out.

They know HTTP, JSON, text and tokens; they do not know engines, and decide nothing about dispatch: a route makes `Request`s, asks them
through `asking.Asking`, and writes what arrives. They may import `core`'s data types, the `shell` and `model_files`, never `upstream`.

    server           the application: routes, typed errors, limits; listening
    acceptor         new connections, all that have come in one go; silent ones are closed
    access           who may speak: the key, Host, Origin, the body's type
    body_reader      a body within its limits, decoded beside the loop
    asking           asking the core: rollout, sample name and hints by header; all answers, or pieces as they come
    generate         SGLang's POST /generate, and our clients' POST /rollouts/{n}/samples
    request_bodies   their bodies into requests
    openai_routes    POST /v1/completions
    openai_bodies    its bodies into requests, and what a chat's have in common with them
    openai_answers   answers in OpenAI's shapes: choices, log-probs, token ids, usage, pieces
    fields           fields that would change an answer and are refused
    agents/          POST /v1/chat/completions and its other dialects: tools, reasoning
    about/           what a gateway says of its model and engines, and what it refuses to do
    text             text to tokens and back by the model's files, with a client's errors
    responses        JSON bodies, events, keep-alives
    errors           RequestError: status, stable code, sentence

A request, step by step: look whether it may be asked (`access`); read the body within its limits; decode it (a `RequestError(400)` says what is wrong and
where); tokenize; ask every copy under its own name; then either wait for all answers and send one body, or wait for the first arrival, send
the headers, and write each arrival as an event (a keep-alive after 10 s without one). A failure before the headers is an HTTP status; after
them it is an event of the stream.
A client that hangs up cancels its handler, and what nobody else wants is aborted on the engine.
"""
