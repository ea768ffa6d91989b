"""What a person reads: no secret in it, however it came there."""

from __future__ import annotations

import errno
import io
import os
import traceback
from urllib.parse import quote

import pytest

from kit import errors
from kit.errors import KitError, keep_secret, washed
from scripts.hints import words

SECRET = "MARKEDQZ" * 3


@pytest.mark.parametrize(
    "text",
    [
        f"Illegal header value b'Bearer hf_{SECRET}\\n{SECRET}'",
        f"refused: Authorization: Bearer {SECRET}",
        f"the token hf_{SECRET} is bad",
        f"GET https://ada:{SECRET}@proxy.example:3128/x failed",
        f"https://files.example/a?X-Amz-Expires=3&X-Amz-Signature={SECRET}&x=1",
        f"https://files.example/a?Signature={SECRET}",
    ],
)
def test_words_of_a_library_are_washed(text):
    error = KitError(text, text)
    assert "MARKED" not in washed(text) + error.message + words(error.hint) + str(error)
    assert "MARKED" not in "".join(traceback.format_exception(error))


def test_the_parts_of_a_secret_are_washed_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(errors, "_kept", set())
    keep_secret(f"hf_{SECRET}A\n{SECRET}B{chr(9)}short")
    assert washed(f"a {SECRET}B, and \\nhf_{SECRET}A of a short word") == "a …, and \\n… of a short word"


def test_what_is_no_secret_stays():
    for text in (
        "it does not begin with hf_.",
        "HF_ENDPOINT=huggingface.co is not the address of a Hub",
        "make login",
        "https://huggingface.co/settings/tokens/new?canReadGatedRepos=true&tokenType=fineGrained",
        "http://127.0.0.1:8080/a/b@c",
        "wrong bytes: 3 of 4",
    ):
        assert washed(text) == text


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EPERM, "permission denied for this account"),
        (errno.ENOLCK, "the file system has no locks"),
        (errno.ENOSYS, "the file system has no locks"),
        (errno.EMFILE, "too many files are open"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EXDEV, os.strerror(errno.EXDEV)),
    ],
)
def test_an_error_of_the_system_says_what_it_is_whatever_the_verb(number, says, monkeypatch, capsys):
    import click

    from scripts import cli

    @click.command(name="broken")
    def broken() -> None:
        raise OSError(number, "its own words", "/some/file")

    monkeypatch.setattr("sys.argv", ["broken"])
    assert cli._run(broken) == 1
    said = capsys.readouterr().err
    assert f"error: {says} (/some/file)." in said or "error: its own words (/some/file)." in said
    assert ("its own words" in said) == (number == errno.EXDEV)


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("UV_INDEX_OWN_PASSWORD", "MARKED secret word", "MARKED secret word"),
        ("PIP_INDEX_URL", "https://ada:p@ss/MARKED@index.example/simple", "p@ss/MARKED"),
        ("HTTPS_PROXY", "ada:MARKEDword@proxy.example:3128", "MARKEDword"),
        ("HF_TOKEN", "hf_MARKED\tMARKEDMARKED", "MARKEDMARKED"),
        ("HF_ENDPOINT", "https://mirror.example/?x-amz-signature=MARKEDsignature", "MARKEDsignature"),
    ],
)
def test_what_the_environment_holds_is_cut_out_of_whatever_is_written(name, value, secret, monkeypatch):
    monkeypatch.setattr(errors, "_kept", set())
    errors.keep_secrets({name: value})
    stream = io.StringIO()
    errors.wash(stream)
    print(f"a library says {secret!r}, {quote(secret)} and {secret}", file=stream)
    written = stream.getvalue()
    assert "a library says" in written
    assert "MARKED" not in written
