"""The model's files are what a folder in Hugging Face layout says of text: its tokenizer, chat template, limits and defaults.

Nothing here knows HTTP or engines, and nothing here asks the network.

    tokenizer       the tokenizer and its chat template, by `transformers`; the only module of the gateway's that imports it
    chat_template   the source of a chat template, read without the library: whether it compiles, and what it says of the model
    conversation    messages as clients send them into messages as templates read them
    settings        what config.json and generation_config.json say: end tokens, sizes, sampling defaults
    parsers         which of SGLang's parsers read a model's tool calls and reasoning, and the marks at which these begin

`transformers` would import torch (3 s, 200 MiB) where it finds it. `engines.gateway.__main__` tells it that there is none.
"""
