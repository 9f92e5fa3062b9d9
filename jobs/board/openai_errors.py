"""Errors in the shape of OpenAI's API, for requests under /v1."""

from __future__ import annotations

from starlette.responses import JSONResponse

PREFIX = "/v1/"
_CODES = {
    401: "invalid_api_key",
    403: "insufficient_permissions",
    404: "not_found",
    413: "request_too_large",
    429: "rate_limit_exceeded",
}
_CLIENT_WOULD_REPEAT = (408, 409)
"""OpenAI's clients send such a request again, unless they are told not to."""


def speaks_openai(path: str) -> bool:
    """Whether whoever asks for this path expects errors in OpenAI's shape."""
    return path.startswith(PREFIX)


def openai_error(
    status: int, text: str, *, param: str | None = None, code: str | None = None, repeat: bool = True
) -> JSONResponse:
    """`{"error": {"message", "type", "param", "code"}}`; with `repeat` off a client does not try again."""
    if status == 422:
        # Theirs answers 400 to whatever a body has wrong.
        status = 400
    if param == "model" and status == 400:
        status, code = 404, "model_not_found"
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": text, "type": kind, "param": param, "code": code or _CODES.get(status)}
    headers = {} if repeat and status not in _CLIENT_WOULD_REPEAT else {"x-should-retry": "false"}
    return JSONResponse({"error": error}, status, headers)
