"""Bounds on requests, and their count, before anything reads them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Limited:
    """Refuse bodies of more than ``most`` bytes as they arrive, and report every request when it ends.

    Args:
        app: that answers.
        most: bytes of a body.
        report: called with path, status and seconds.
    """

    def __init__(self, app: ASGIApp, most: int, report: Callable[[str, int, float], None]) -> None:
        self.app, self.most, self.report = app, most, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, read = time.perf_counter(), 500, 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise HTTPException(413, self._too_large())  # which the application answers
            return message

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if _declared(scope) > self.most:
                await JSONResponse({"error": self._too_large()}, 413)(scope, receive, noting)
            else:
                await self.app(scope, bounded, noting)
        finally:
            self.report(_path(scope), status, time.perf_counter() - began)

    def _too_large(self) -> str:
        return f"The request must have at most {self.most / 1e6:g} MB. Send fewer or smaller images."


def _declared(scope: Scope) -> int:
    """Length of the body by its header; 0 if there is none."""
    value: Any = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() and len(value) < 20 else 0


def _path(scope: Scope) -> str:
    """Path of the route that answered; other paths are one, so that their number is bounded."""
    return getattr(scope.get("route"), "path", "other")
