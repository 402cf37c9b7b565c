"""What a gateway says of itself: its model, its tokens, its engines; and what it refuses to do, because only the supervisor may.

    model_routes     GET /model_info, /get_model_info, /v1/models, /v1/models/{id}; POST /tokenize, /detokenize
    engine_routes    GET /server_info, /health_generate, /v1/loads, /workers; POST /abort_request; what is refused

These are the routes that clients of SGLang, of its router and of vLLM call before, between and after their requests. One pipeline is one server to them:
its engines are not named by URL, since they come and go.
"""
