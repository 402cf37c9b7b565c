"""Upstream are the engines: this package makes one attempt on one engine over HTTP, and reads what comes.

    http_connection  connections to engines that are kept; bytes out, and what comes told at once
    engine_client    POST /generate (streamed) and POST /abort_request; an attempt's result is `Finished`, `Refused` or `Broken`
    questions        what costs an engine no step of the model: parsing a text, saying what it is
    http_connection  HTTP/1.1 to engines over connections that are kept
    sglang_stream    bytes of the event stream into `Tokens` and the end

It imports the data types of `core` and decides nothing; it raises nothing for what an engine does.

SGLang's *data* dialect (0.5.23; the embedded engine speaks it too) is known in these places, and nowhere else in the gateway:

    upstream/                 the stream of an answer: incremental or cumulative, its per-token fields, its errors, its abort
    core/continuation         the body of POST /generate; which sampling parameters and options keep state inside an engine
    core/attempts             finish_reason: `type` abort, `status_code`
    routes/request_bodies     the body of POST /generate as clients send it, and names of sampling parameters
    routes/generate           meta_info as clients read it
    routes/openai_bodies      which of OpenAI's fields are which sampling parameters

The *control* dialect (pause, wake, load weights) is known by `engines.control` alone.

One attempt: `run` posts the body under a fresh request id and calls back with `Tokens` as events come (one for all events that came at
once), and with its end. `finish_reason` in an event ends it; a stream that ends without one, a reset connection or silence is `Broken`, a
400 is `Refused`. `cut` closes the connection, nothing more is told, and the engine aborts the request by itself; `abort` asks it to, and
the end still says what the engine says last. There is no task for an attempt: what a token costs is mostly what stands around it.
"""
