"""An agent framework that speaks OpenAI's API (tools, several calls): can the trainer get token ids and log-probs of what it trains on?"""
import json, os, urllib.request
from trainshed import connect
P = connect()
def post(path, body, **h):
    r = urllib.request.Request(os.environ["TRAINSHED_URL"] + path, json.dumps(body).encode(), {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("TRAINSHED_API_KEY", ""), **h})
    try: return json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(r, timeout=60))
    except urllib.error.HTTPError as e: return {"HTTP": e.code, "body": e.read()[:300].decode()}
tool = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}}
with P.rollout(target=3) as r:
    h = {"X-Trainshed-Rollout": str(r.number), "X-Trainshed-Session": "game-1"}
    base = {"model": "any", "messages": [{"role": "user", "content": "d:"}], "max_tokens": 4}
    print("plain", json.dumps(post("/v1/chat/completions", base, **h))[:700])
    print("logprobs", json.dumps(post("/v1/chat/completions", {**base, "logprobs": True}, **h))[:500])
    print("token ids", json.dumps(post("/v1/chat/completions", {**base, "return_token_ids": True, "logprobs": True}, **h))[-500:])
    print("tools", json.dumps(post("/v1/chat/completions", {**base, "tools": [tool]}, **h))[:400])
    print("completions with ids", json.dumps(post("/v1/completions", {"model": "any", "prompt": [3, 4], "max_tokens": 4, "logprobs": 1}, **h))[:500])
