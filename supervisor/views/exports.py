"""This module writes how a gateway is asked as lines for a shell: `eval "$(bin/supervise env p1)"`."""

import shlex

from supervisor.attempt.gateway_keys import GatewayAccess
from trainers.protocol.child_env import API_KEY, OPENAI_KEY, URL


def exports(access: GatewayAccess) -> list[str]:
    """Return `export` lines with URL and key, as Trainshed's clients look for them, and OpenAI's.

    A gateway without a key gets `none` from OpenAI's clients, which want one, so that a real key of OpenAI's is not sent to it.
    """
    variables = {URL: access.url, "OPENAI_BASE_URL": f"{access.url}/v1", OPENAI_KEY: access.key or "none"}
    if access.key is not None:
        variables[API_KEY] = access.key
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
