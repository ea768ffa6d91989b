"""Accounts and gated models, in the words and with the statuses of the real Hub (FACTS: huggingface_hub 2.4.0)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Send

from kit.offline.hub_endpoints import error


@dataclass(frozen=True)
class Account:
    """Who a token belongs to. `role` is read, write or fineGrained; `access` to gated models granted, none or pending.

    `can_read_gated_repos` counts for a fine-grained token only: the others read what their account may read.
    """

    name: str
    role: str = "read"
    can_read_gated_repos: bool = True
    access: str = "granted"


def token_of(request: Request) -> str | None:
    return request.headers.get("authorization", "").removeprefix("Bearer ") or None


def refusal(request: Request, gated: set[str], accounts: dict[str, Account]) -> Response | None:
    """Why this request is refused; None where it is not."""
    token = token_of(request)
    if token is not None and token not in accounts:
        return error(401, "", "Invalid credentials in Authorization header")
    repo_id = next((repo_id for repo_id in gated if is_behind_gate(request, repo_id)), None)
    if repo_id is None:
        return None
    if token is None:
        return error(
            401,
            "GatedRepo",
            f"Access to model {repo_id} is restricted. You must have access to it and be authenticated to access it. "
            "Please log in.",
        )
    account = accounts[token]
    if account.role == "fineGrained" and not account.can_read_gated_repos:
        return error(
            403,
            "",
            "Please enable access to public gated repositories in your fine-grained token settings to view this "
            "repository.",
        )
    if account.access == "none":
        return error(
            403,
            "GatedRepo",
            f"Access to model {repo_id} is restricted and you are not in the authorized list. "
            f"Visit https://huggingface.co/{repo_id} to ask for access.",
        )
    if account.access == "pending":
        return error(
            403, "GatedRepo", f"Your request to access model {repo_id} is awaiting a review from the repo authors."
        )
    return None


def is_behind_gate(request: Request, repo_id: str) -> bool:
    """Files, the list of files, and the question itself; what is told about the model is open to all."""
    closed = (f"/{repo_id}/resolve/", f"/api/models/{repo_id}/tree/", f"/api/models/{repo_id}/auth-check")
    return request.scope["path"].startswith(closed)


def whoami(account: Account) -> Response:
    token = {"displayName": f"{account.name}'s token", "role": account.role, "createdAt": "2024-09-25T00:00:00.000Z"}
    if account.role == "fineGrained":
        user = {"entity": {"_id": "0" * 24, "type": "user", "name": account.name}, "permissions": ["repo.content.read"]}
        token |= {"fineGrained": {"canReadGatedRepos": account.can_read_gated_repos, "global": [], "scoped": [user]}}
    about = {"type": "user", "id": "0" * 24, "name": account.name, "fullname": account.name, "isPro": False, "orgs": []}
    return JSONResponse(about | {"auth": {"type": "access_token", "accessToken": token}})


def marked_gated(send: Send) -> Send:
    """What is told about a gated model says so."""
    start: Message = {}

    async def mark(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
        elif start["status"] != 200:
            await send(start)
            await send(message)
        else:
            body = json.dumps(json.loads(message["body"]) | {"gated": "manual"}).encode()
            headers = [header for header in start["headers"] if header[0] != b"content-length"]
            await send(start | {"headers": [*headers, (b"content-length", b"%d" % len(body))]})
            await send(message | {"body": body})

    return mark
