"""This package is what two processes must agree on: ids, frames, messages, seeds, and where a child finds our code.

It is the ground floor: it imports nothing of ours, and everybody may import it (supervisor, engines, gateways, ranks of the built-in
trainer). It holds values and their spelling, never behaviour. A user's own script does not import it: the client (`trainshed`) is one file
of standard library that repeats frames and seeds, and tests hold the two against each other.

    ids                what lives and dies: pipeline, engine, trainer, gateway, GPU, incarnation, version; text, log file and tag of each
    framing            u32 length + JSON on an inherited socket pair
    trainer_messages   between a trainer's ranks and the supervisor
    gateway_messages   between a gateway and the supervisor
    seeds              a sample's seed from pipeline seed, rollout and index
    child_env          where a child finds our code, and the names of the variables that it gets
    loopback           who may speak to a listener of ours: Host, Origin and key of a request

Everything but `child_env` is pure. A message is a frozen msgspec Struct with a tag; a union of them is what one end reads:

    from trainers.protocol.framing import FrameReader, encode
    from trainers.protocol.gateway_messages import Order, Ready

    connection.sendall(encode(Ready()))                  # b'\\x00\\x00\\x00\\x10{"type":"ready"}'
    reader = FrameReader(Order)
    for order in reader.feed(connection.recv(65536)):    # Route(order=1, engine=0, …); FrameError: the peer has failed
        ...

Names in messages are recorded (`supervisor.attempt.recording`), and old recordings are read again: a field may be added with a default,
none renamed. A class that moves or is renamed is entered in `supervisor.attempt.state_codec`.
"""
