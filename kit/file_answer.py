"""A file, or the part of it that a client asks for (RFC 9110, 14: range requests)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import BinaryIO

from kit.http_messages import Answer, FilePart, Request


def part_of(
    request: Request, size: int, etag: str, opened: Callable[[], BinaryIO | None], more: Mapping[str, str]
) -> Answer | None:
    """The answer to a GET or HEAD for a file of `size` bytes, with `more` headers. None where it cannot be opened."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": etag, **more}
    asked = _asked_range(request, etag)
    part = range(size) if asked is None else _part(asked, size)
    if asked is not None and not part:
        return Answer(416, {"Content-Range": f"bytes */{size}", **more})
    content = opened()
    if content is None:
        return None
    if asked is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    return Answer(200 if asked is None else 206, headers, FilePart(content, part.start, len(part)))


def _asked_range(request: Request, etag: str) -> str | None:
    """What stands behind `Range: bytes=`, where it counts (RFC 9110).

    Not for a HEAD, nor with another ETag in If-Range: that asks for the whole of the file as it is now.
    """
    unit, _, asked = request.headers.get("range", "").partition("=")
    if request.method == "HEAD" or unit != "bytes" or request.headers.get("if-range", etag) != etag:
        return None
    return asked


def _part(asked: str, size: int) -> range:
    """The bytes of `first-last`, `first-` or `-count`; none for what cannot be had, several ranges among it."""
    match = re.fullmatch(r"([0-9]{0,19})-([0-9]{0,19})", asked)
    if match is None or asked == "-":
        return range(0)
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(int(last) + 1, size) if last else size)
