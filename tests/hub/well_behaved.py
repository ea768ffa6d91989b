"""The mirror's Hub alone, without a bundle around it: some models, in the process of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.types import ASGIApp

from kit.offline import hub_endpoints
from kit.offline.http_server import TIMEOUT, Exchange, Server
from kit.offline.hub_endpoints import ServedModel


def hub_app(models: Iterable[ServedModel]) -> ASGIApp:
    return hub_endpoints.app(route for model in models for route in hub_endpoints.routes(model))


class HubServer(Server):
    """Serves `models`, or `app` in their place."""

    def __init__(
        self,
        models: Iterable[ServedModel],
        host: str = "127.0.0.1",
        port: int = 0,
        on_request: Callable[[Exchange], None] = lambda exchange: None,
        timeout: float = TIMEOUT,
        app: ASGIApp | None = None,
    ) -> None:
        super().__init__(app or hub_app(models), host, port, on_request, timeout)
