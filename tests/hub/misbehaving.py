"""The misbehaving hub itself: which fault meets which request, and what was asked of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Message, Receive, Scope, Send

from kit.offline.hub_endpoints import ServedModel, error
from tests.hub import faults, gate
from tests.hub.faults import (
    OF_THE_BODY,
    Connection,
    Cut,
    Delay,
    Fault,
    Gone,
    IgnoreRange,
    OtherDate,
    Portal,
    Redirect,
    SpoiltBody,
    Stall,
    Status,
    WrongBytes,
)
from tests.hub.well_behaved import HubServer, hub_app


@dataclass
class Record:
    """One request: there from its beginning; `status` is 0 until it is answered, `done` False until that has ended."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int = 0
    sent: int = 0  # bytes of the body
    done: bool = False


@dataclass(eq=False)
class Order:
    """A fault that was asked for: `count` says how often it came about, stop() ends it and lets go what it holds."""

    path: str
    fault: Fault
    left: float
    method: str | None
    count: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self.left = 0
        self.stopped.set()

    def meets(self, request: Request) -> bool:
        path = request.scope["path"]
        if self.left <= 0 or self.method not in (None, request.method):
            return False
        if request.method == "HEAD" and isinstance(self.fault, OF_THE_BODY):
            return False
        return fnmatch(path, self.path) or path.endswith(f"/{self.path}")


class MisbehavingHub(HubServer):
    """A hub of `models`. The files of those in `gated` are for `accounts` (by token) with access; both may change."""

    def __init__(
        self,
        models: Iterable[ServedModel],
        gated: Iterable[str] = (),
        accounts: dict[str, gate.Account] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout: float = 30,
    ) -> None:
        self.gated, self.accounts = set(gated), dict(accounts or {})
        self._orders: list[Order] = []
        self._records: list[Record] = []
        self._lock = threading.Lock()
        models = list(models)
        self._by_the_rules = hub_app(models)
        super().__init__(models, host, port, timeout=timeout, app=self._answer)

    def misbehave(self, path: str, fault: Fault, times: int | None = None, method: str | None = None) -> Order:
        """`fault` for requests of `path` (a glob of the whole path, or its end), always or that many times."""
        order = Order(path, fault, float("inf") if times is None else times, method)
        with self._lock:
            self._orders.append(order)
        return order

    def behave(self) -> None:
        """Ends all misbehaviour and lets go what it holds."""
        for order in self._orders:
            order.stop()

    @property
    def requests(self) -> list[Record]:
        with self._lock:
            return list(self._records)

    def asked(self, path: str, method: str | None = None) -> list[Record]:
        """The requests of a path (a glob, or its end), in order."""
        return [
            record
            for record in self.requests
            if (fnmatch(record.path, path) or record.path.endswith(f"/{path}")) and method in (None, record.method)
        ]

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        record = Record(
            request.method, scope["path"], request.headers.get("range"), request.headers.get("authorization")
        )
        with self._lock:
            self._records.append(record)
            orders = [order for order in self._orders if order.meets(request)]
            for order in orders:
                order.left -= 1
                order.count += 1

        async def note(message: Message) -> None:
            record.status = message.get("status", record.status)
            await send(message)
            record.sent += len(message.get("body", b"")) if request.method != "HEAD" else 0

        try:
            await self._misbehave(orders, request, receive, note)
        except Gone:
            pass
        finally:
            record.done = True

    async def _misbehave(self, orders: list[Order], request: Request, receive: Receive, send: Send) -> None:
        connection = Connection(receive)
        for order in orders:
            match order.fault:
                case Delay(seconds):
                    await asyncio.sleep(seconds)
                case IgnoreRange():
                    request = Request(request.scope | {"headers": _without_range(request.scope)})
                case OtherDate() as fault:
                    connection.date(faults.date(fault))
                case Redirect() as fault:
                    send = faults.redirected(fault, request.scope["raw_path"].decode(), send)
                case (Cut() | Stall() | WrongBytes()) as fault:
                    send = SpoiltBody(fault, send, connection, order.stopped)
        answer = self._answer_in_place(orders) or self._answer_by_the_rules(request)
        about = {f"/api/models/{repo_id}" for repo_id in self.gated}
        if answer is None and request.scope["path"].partition("/revision/")[0] in about:
            send = gate.marked_gated(send)
        await (answer or self._by_the_rules)(request.scope, receive, send)

    def _answer_in_place(self, orders: list[Order]) -> Response | None:
        for order in orders:
            match order.fault:
                case Status(status, retry_after, error_code, message):
                    answer = error(status, error_code, message)
                    if retry_after is not None:
                        answer.headers["Retry-After"] = str(retry_after)
                    return answer
                case Portal(page):
                    return HTMLResponse(page)
        return None

    def _answer_by_the_rules(self, request: Request) -> Response | None:
        """What this hub says where it is not the mirror's own answer."""
        if request.method not in ("GET", "HEAD"):
            return None
        if refusal := gate.refusal(request, self.gated, self.accounts):
            return refusal
        if request.scope["path"] == "/api/whoami-v2":
            token = gate.token_of(request)
            return gate.whoami(self.accounts[token]) if token else error(401, "", "Invalid username or password.")
        return None


def _without_range(scope: Scope) -> list[tuple[bytes, bytes]]:
    return [header for header in scope["headers"] if header[0] != b"range"]
