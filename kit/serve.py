"""A read-only Hub over model folders, for huggingface_hub's client.

`with HubServer([served(model)]) as hub:` and then, anywhere that reaches it, `HF_ENDPOINT=<hub.url> hf download …`.
It has no accounts: clients need no token, and should send none (the client sends its token to any HF_ENDPOINT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kit.http_messages import Answer, Request
from kit.http_server import TIMEOUT, Exchange, Server
from kit.hub_api import HubApi
from kit.served_models import ServedFile, ServedModel, served, served_folder

__all__ = ["HubServer", "ServedFile", "ServedModel", "served", "served_folder"]


class HubServer(Server):
    """Serves `models` to whoever reaches `host` and `port` (0: any free one), and ignores a token that is sent."""

    def __init__(
        self,
        models: Iterable[ServedModel],
        host: str = "127.0.0.1",
        port: int = 0,
        on_request: Callable[[Exchange], None] = lambda exchange: None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._api = HubApi(models)
        super().__init__(host, port, on_request, timeout)

    def answer(self, request: Request) -> Answer:
        return self._api.answer(request)
