"""This module defines the error of a request: a status, a stable code, a sentence for whoever reads it."""

from typing import Any

from engines.gateway.core.samples import Failure


class RequestError(Exception):
    """The request cannot be answered; it ends with `status`. `code` is stable and for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    @classmethod
    def of(cls, failure: Failure) -> "RequestError":
        """Return the error of a sample that has failed."""
        return cls(failure.status, failure.code, failure.message)

    def body(self) -> dict[str, Any]:
        """Return the answer's body. `type` and `param` are there for OpenAI's clients."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"code": self.code, "message": self.message, "type": kind, "param": None}}
