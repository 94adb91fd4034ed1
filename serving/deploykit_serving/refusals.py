"""`Refusal`: why a request is not answered, as an HTTP status, a message that names the field, and a label."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 - what a client is told, no fault of the server
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what is wrong, with the field of the request where there is one, and what to do.
        reason: short label for metrics and logs, of a small fixed set.
        retry_after_s: when to ask again; None where asking again does not help.
        close: the connection is closed after the answer, because the rest of the request is not read.
    """

    def __init__(
        self, status: int, message: str, *, reason: str, retry_after_s: int | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.close = close


def malformed(field: str, problem: str) -> Refusal:
    """A request (400) whose `field` is wrong, written as in JavaScript: `inputs[0].shape`."""
    return Refusal(400, f"{field}: {problem}", reason="malformed")
