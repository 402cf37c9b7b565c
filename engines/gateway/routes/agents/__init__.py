"""Agents talk in turns: this package serves chats, with tools, reasoning and token ids, in the dialects that agents' libraries speak.

    field_table     which fields of OpenAI's bodies are honoured, refused, or change nothing, as docs/gateway.md shows it
    tool_choice     tools and tool_choice: what is checked, and the schema that forces a call
    chat_bodies     the body of POST /v1/chat/completions into requests, and how its answers are to be read
    reading         an answer's text into reasoning, content and calls; whole, or piece by piece
    chat_answers    what was read into OpenAI's messages and chunks
    chat_routes     POST /v1/chat/completions; other dialects ask `Chats` and write its answers in their own shapes
    responses_api   OpenAI's POST /v1/responses
    messages_api    Anthropic's POST /v1/messages and /v1/messages/count_tokens

Calls are parsed by an engine (SGLang's own parsers, by `/parse_function_call`; the embedded engine knows some of the same formats), since formats are many and
change with the models. A stream is text up to the first mark with which a call may begin; what follows is held until the answer has ended.
"""
