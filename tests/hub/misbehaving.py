"""The misbehaving hub itself: which fault meets which request, and what was asked of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from fnmatch import fnmatch
from urllib.parse import unquote

from kit.offline.http_server import Answer, Request, Text
from kit.offline.hub_endpoints import HubServer, ServedModel, error
from tests.hub import gate
from tests.hub.faults import (
    OF_THE_BODY,
    Cut,
    Delay,
    Fault,
    FaultyBody,
    IgnoreRange,
    OtherDate,
    Portal,
    Redirect,
    Stall,
    Status,
    WrongBytes,
)


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
        path = unquote(request.path)
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
        self._records: dict[Request, Record] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        super().__init__(models, host, port, timeout=timeout)

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
            return list(self._records.values())

    def asked(self, path: str, method: str | None = None) -> list[Record]:
        """The requests of a path (a glob, or its end), in order."""
        return [
            record
            for record in self.requests
            if (fnmatch(record.path, path) or record.path.endswith(f"/{path}")) and method in (None, record.method)
        ]

    def answer(self, request: Request) -> Answer:
        with self._lock:
            record = self._records[request] = _record(request)
            orders = [order for order in self._orders if order.meets(request)]
            for order in orders:
                order.left -= 1
                order.count += 1
        for order in orders:
            if isinstance(order.fault, Delay):
                self._closing.wait(order.fault.seconds)
            if isinstance(order.fault, IgnoreRange):
                headers = {name: value for name, value in request.headers.items() if name != "range"}
                request = replace(request, headers=headers)
        answer = self._answer_in_place(orders) or self._answer_by_the_rules(request)
        for order in orders:
            answer = self._spoil(request, answer, order)
        record.status = answer.status
        return answer

    def finished(self, request: Request, status: int, sent: int) -> None:
        with self._lock:
            record = self._records.setdefault(request, _record(request))
            record.status, record.sent, record.done = status, sent, True
        super().finished(request, status, sent)

    def close(self) -> None:
        self._closing.set()
        super().close()

    def _answer_in_place(self, orders: list[Order]) -> Answer | None:
        for order in orders:
            match order.fault:
                case Status(status, retry_after, error_code, message):
                    answer = error(status, error_code, message)
                    after = {} if retry_after is None else {"Retry-After": str(retry_after)}
                    return replace(answer, headers={**answer.headers, **after})
                case Portal(page):
                    return Answer(200, {"Content-Type": "text/html; charset=utf-8"}, Text(page.encode()))
        return None

    def _answer_by_the_rules(self, request: Request) -> Answer:
        if refusal := gate.refusal(request, self.gated, self.accounts):
            return refusal
        if request.path == "/api/whoami-v2":
            token = gate.token_of(request)
            return gate.whoami(self.accounts[token]) if token else error(401, "", "Invalid username or password.")
        answer = super().answer(request)
        about = {f"/api/models/{repo_id}" for repo_id in self.gated}
        path = unquote(request.path)
        if answer.status == 200 and (path in about or path.partition("/revision/")[0] in about):
            return gate.marked_gated(answer)
        return answer

    def _spoil(self, request: Request, answer: Answer, order: Order) -> Answer:
        match order.fault:
            case Redirect(host) if answer.status in (200, 206):
                answer.body.close()
                kept = ("ETag", "X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size")
                headers = {name: answer.headers[name] for name in kept if name in answer.headers}
                return Answer(302, headers | {"Location": f"{host}{request.path}"})
            case OtherDate(skew):
                date = formatdate(time.time() + skew, usegmt=True)
                return replace(answer, headers={**answer.headers, "Date": date})
            case Cut(after, reset):
                return replace(answer, body=replace(self._faulty(answer), end=after, reset=reset))
            case Stall(after):
                return replace(answer, body=replace(self._faulty(answer), stall_at=after, go_on=order.stopped))
            case WrongBytes():
                return replace(answer, body=replace(self._faulty(answer), wrong=True))
        return answer

    def _faulty(self, answer: Answer) -> FaultyBody:
        body = answer.body
        return body if isinstance(body, FaultyBody) else FaultyBody(body, closing=self._closing)


def _record(request: Request) -> Record:
    headers = request.headers
    return Record(request.method, unquote(request.path), headers.get("range"), headers.get("authorization"))
