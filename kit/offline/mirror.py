"""A bundle for the machines around: a package index, a Hub, and the bundle's own files for `make setup BUNDLE=http://…`.

    /simple/                        wheels, as a package index (PEP 503)
    /api/… /<repo>/resolve/…        models, as a Hub (kit/offline/hub_endpoints.py)
    /SHA256SUMS /wheels/… /models/… /kit/… /README    the bundle

Read-only, and nothing but what SHA256SUMS lists: a request is looked up, never turned into a path. No accounts: clients
need no token and should send none.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from kit.environment import wheels
from kit.errors import Command, KitError
from kit.models import licence, registry
from kit.models.registry import Model, ModelFile
from kit.offline import bundle, hub_endpoints, sources
from kit.offline.bundle import Sums
from kit.offline.http_server import Exchange, Server
from kit.offline.hub_endpoints import ServedFile, ServedModel, served_folder


@dataclass(frozen=True)
class Shelf:
    """What a mirror has: a bundle that was proved, the models that it hands out, the gated ones that it keeps back."""

    folder: Path
    sums: Sums
    digest: str
    models: tuple[Model, ...]
    kept_back: tuple[Model, ...]


def shelf(folder: Path, allow_gated: bool = False) -> Shelf:
    """Reads and proves the bundle in `folder`. Raises KitError for a bad one, and for a model without its licence."""
    if folder.is_file():
        raise KitError(f"{folder} is a tar, and a mirror serves a folder.", f"tar -xf {folder}, then name what it made")
    if not (folder / bundle.SUMS).exists():
        raise KitError(
            f"{folder} is no bundle: it has no {bundle.SUMS}.",
            "ls -d dist/*/ and name one of these: ",
            Command("mirror", BUNDLE="dist/…"),
            "; where there is none: ",
            Command("bundle"),
        )
    unpacked = sources.Folder(folder)
    content = unpacked.read_sums()
    sums = bundle.parse_sums(content)
    unpacked.check(sums)
    known, found = registry.read(), []
    for name, paths in bundle.models_in(sums).items():
        is_tuned = name not in known and registry.TUNE_JSON in paths
        if name not in known and not is_tuned:
            raise KitError(
                f"the bundle holds the model {name}, which env/models.toml of this clone does not list.",
                "serve it from a clone of the commit that the bundle's README names",
            )
        model = registry.tuned(name, folder / bundle.MODELS) if is_tuned else known[name]
        bundle.check_model(model, sums)
        found.append(model)
        if model.gated and allow_gated:
            licence.require_licences(model, paths)
            if absent := set(licence.texts(model)) - set(paths):
                raise bundle.refusal(f"{bundle.MODELS}/{name}/{min(absent)}", "is missing, and its licence asks for it")
    handed = tuple(model for model in found if allow_gated or not model.gated)
    return Shelf(folder, sums, bundle.digest(content), handed, tuple(m for m in found if m not in handed))


def repo_id(model: Model) -> str:
    """The name under which a mirror's Hub has the model, also one that does not come from the Hub."""
    return model.repo_id or f"base-model-kit/{model.name}"


def revision(model: Model) -> str:
    """The Hub's commit; for a model that has none, 40 digits that change with its files."""
    if model.repo_id:
        return model.revision
    return hashlib.sha1("".join(file.sha256 for file in model.files).encode(), usedforsecurity=False).hexdigest()


class Mirror(Server):
    """Serves a shelf to whoever reaches `host` and `port`. Raises KitError where it cannot listen."""

    def __init__(self, stock: Shelf, host: str, port: int, on_request: Callable[[Exchange], None]) -> None:
        routes = [route for model in stock.kept_back for route in _closed(model)]
        routes += [route for model in stock.models for route in hub_endpoints.routes(_served(stock, model))]
        routes += [*_index(stock.sums), *_tree(stock)]
        super().__init__(hub_endpoints.app(routes), host, port, on_request)


def _closed(model: Model) -> list[Route]:
    """Everything of a gated model: in the bundle, and on the Hub."""

    def refused(request: Request) -> Response:
        return hub_endpoints.error(403, "GatedRepo", "This model is gated, and this mirror does not hand it out")

    about = f"/api/models/{repo_id(model)}"
    places = [f"/{bundle.MODELS}/{model.name}/", f"/{repo_id(model)}/", f"{about}/"]
    return [Route(about, refused), *(Route(place + "{path:path}", refused) for place in places)]


def _tree(stock: Shelf) -> list[Route]:
    """The bundle and SHA256SUMS itself, under whatever else has the address; of models, those that are handed out."""
    kept_back = tuple(f"{bundle.MODELS}/{model.name}/" for model in stock.kept_back)
    files = {
        path: ServedFile(path, (stock.folder / path).stat().st_size, sha256, "", lfs=True)
        for path, sha256 in {**stock.sums, bundle.SUMS: stock.digest}.items()
        if not path.startswith(kept_back)
    }
    tree = ServedModel("", stock.digest, stock.folder, tuple(files.values()))

    def file(request: Request) -> Response:
        path = request.path_params["path"]
        if path not in files:
            return hub_endpoints.no_model()
        media_type = "application/octet-stream" if "/" in path else "text/plain"
        return hub_endpoints.send_file(tree, files[path], {}, media_type)

    hello = "base-model-kit mirror: see /README\n"
    return [Route("/", lambda request: PlainTextResponse(hello)), Route("/{path:path}", file)]


def _served(stock: Shelf, model: Model) -> ServedModel:
    """A model as the Hub has it: what a run needs, its licence's texts and its notice."""
    folder = stock.folder / bundle.MODELS / model.name
    listed = [file.path for file in model.files]
    texts = [
        ModelFile(path, (folder / path).stat().st_size, stock.sums[f"{bundle.MODELS}/{model.name}/{path}"])
        for path in bundle.models_in(stock.sums)[model.name]
        if path not in listed
    ]
    return served_folder(repo_id(model), revision(model), folder, [*model.files, *texts])


def _index(sums: Sums) -> list[Route]:
    """The package index: each package's page has links with the sha256 that pip and uv compare."""
    pages: dict[str, list[str]] = {}
    for name, sha256 in sorted(bundle.wheels_in(sums).items()):
        link = f'<a href="/{bundle.WHEELS}/{quote(name)}#sha256={sha256}">{html.escape(name)}</a>'
        pages.setdefault(wheels.package(name)[0], []).append(link)
    pages[""] = [f'<a href="{each}/">{each}</a>' for each in pages]

    def page(request: Request) -> Response:
        name = request.path_params.get("name", "")
        if name not in pages:
            return hub_endpoints.error(404, "", "Not found")
        if not request.url.path.endswith("/"):
            return RedirectResponse(f"/simple/{name}/" if name else "/simple/", 301)
        return HTMLResponse("<!DOCTYPE html><html><body>\n" + "<br>\n".join(pages[name]) + "\n</body></html>\n")

    return [Route(path, page) for path in ("/simple", "/simple/", "/simple/{name}", "/simple/{name}/")]
