"""docs/troubleshooting.md quotes what the kit says, and what the kit says of the Hub is quoted there."""

from __future__ import annotations

import ast
import re
import socket
import ssl

import pytest

from kit.hub import errors as hub_errors
from kit.models import registry
from kit.net import errors as network_errors
from kit.net.errors import Refusal
from kit.paths import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# *a message*, with … for what differs from case to case.
QUOTES = [" ".join(quote.split()) for quote in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", PAGE)]


def pieces(quote: str) -> list[str]:
    return [piece.strip(" ,.") for piece in re.split("…", re.sub(r"\([^)]*\)", "…", quote)) if len(piece.strip()) > 3]


def source() -> str:
    python = "\n".join(
        path.read_text(encoding="utf-8") for path in [*ROOT.glob("kit/**/*.py"), *ROOT.glob("scripts/*.py")]
    )
    # Literals that go on in the next line, and values that are put in, read as one text.
    python = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\s*\n\s*f?"', "", python))
    return python + "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("env/*.sh"))


def test_every_message_that_the_page_quotes_is_one_that_the_kit_says():
    said = source()
    for quote in QUOTES:
        for piece in pieces(quote):
            assert piece in said, quote


def quoted(message: str) -> bool:
    return any(all(piece in message for piece in pieces(quote)) for quote in QUOTES if pieces(quote))


# The verbs of the Hub, and what they are made of.
OF_THE_HUB = [
    *("kit/hub/client", "kit/hub/errors", "kit/hub/download", "kit/hub/add_model", "kit/doctor/hub"),
    *("kit/net/errors", "kit/net/get", "kit/net/transfer", "kit/models/folder", "kit/models/registry", "kit/settings"),
    *("scripts/login", "scripts/logout", "scripts/download", "scripts/add_model"),
]


def literal(node: ast.expr) -> str:
    """The text of a literal, with … for the values that are put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def errors_of(module: str) -> set[str]:
    """The messages of the KitErrors that a module raises; not those that it passes on."""
    calls = [node for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())) if isinstance(node, ast.Call)]
    raised = [call for call in calls if ast.unparse(call.func) in ("KitError", "WrongUsage") and call.args]
    return {text for call in raised if re.search("[a-z]", text := literal(call.args[0]))}


@pytest.mark.parametrize("module", OF_THE_HUB)
def test_every_error_that_the_verbs_of_the_hub_raise_is_on_the_page(module):
    assert [message for message in sorted(errors_of(module)) if not quoted(message)] == []


ANSWERS = [
    (401, "GatedRepo", ""),
    (403, "GatedRepo", ""),
    (403, "GatedRepo", "Your request is awaiting a review"),
    (403, "GatedRepo", "Your request to access model x has been rejected by the repo's authors."),
    (403, "GatedRepo", "This account is on a list of another kind."),
    (403, "", "Please enable access to public gated repositories in your fine-grained token settings"),
    (401, "", "Invalid credentials in Authorization header"),
    (404, "RepoNotFound", ""),
    (404, "RevisionNotFound", ""),
    (404, "EntryNotFound", ""),
    (429, "", ""),
    (503, "", ""),
]


@pytest.mark.parametrize(("status", "code", "said"), ANSWERS)
def test_each_answer_of_the_hub_is_on_the_page(status, code, said):
    model = registry.find("llama-3.2-1b")
    headers = {"X-Error-Code": code, "X-Error-Message": said}
    hub = "https://huggingface.co"
    refusal = Refusal(status, headers, f"{hub}/x", hub, token_sent=True)
    error = hub_errors.explain_refusal(refusal, model)
    assert quoted(error.message), error.message
    assert error.hint


def test_a_host_of_files_that_refuses_the_link_is_on_the_page():
    address = "https://cas-bridge.xethub.hf.co/x"
    refusal = Refusal(403, {}, address, "https://huggingface.co", token_sent=False)
    assert quoted(hub_errors.explain_refusal(refusal).message)


FAULTS = [
    socket.gaierror(-2, "Name or service not known"),
    ConnectionRefusedError(111, "Connection refused"),
    TimeoutError("timed out"),
    ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"),
    ValueError("Expecting value"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_each_fault_of_the_network_is_on_the_page(fault, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    error = network_errors.explain(fault, "https://huggingface.co")
    assert quoted(error.message), error.message
    assert error.hint


def test_a_proxy_that_blocks_is_on_the_page(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    error = network_errors.explain(ConnectionRefusedError(111, "Connection refused"), "https://huggingface.co")
    assert quoted(error.message), error.message


def test_an_answer_of_the_gate_that_is_not_known_is_quoted_and_not_guessed():
    model = registry.find("llama-3.2-1b")
    said = "This account is on a list of another kind: {braces} hf_" + "x" * 34
    refusal = Refusal(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": said}, "https://h/x", "https://h", True)
    message = hub_errors.explain_refusal(refusal, model).message
    assert "in its words: This account is on a list of another kind: {braces} …" in message
    assert "accept" not in message
