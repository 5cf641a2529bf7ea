"""The server of the review page: addresses, and what is answered there. Must not know how any of it is found.

What waits for a store waits in threads of its own kind, so that a slow one keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import anyio
import numpy as np
from anyio import to_thread
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

from raytrain.errors import ConfigError, DataError, RaytrainError, first_line
from raytrain.review.access import Guard, names_of
from raytrain.review.asked import MOST_ROWS, AskedDecision, AskedPage, AskedTiles, NotAccepted, OtherTile
from raytrain.review.board import STANDINGS
from raytrain.review.catalogue import SORTS, Filter
from raytrain.review.desk import Desk, NoSuchTile, shown
from raytrain.review.images import MaskLayer, PictureLayer, Raw, Stretch, ValueLayer
from raytrain.review.kinds import ERROR_KINDS
from raytrain.review.log import EntryTooLarge

PAGE = Path(__file__).parent / "page"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Of the files of the page; no other is served."""
INDEX_PAGE = "index.html"
FOREVER = "private, max-age=31536000, immutable"
"""For what an address can't mean twice: it has the hash of the pixels in it."""
ASK_AGAIN = "private, no-cache"
THREADS = {"looking": 8, "pictures": 8, "writing": 16}
"""By what they may wait for: what the shards are now and who decided what, pixels, the log."""
SMALL_BODY_BYTES = 2**16
"""Of a decision without its mask."""

Params = ParamSpec("Params")
ResultT = TypeVar("ResultT")


def make_app(desk: Desk, reviewer: str) -> FastAPI:
    """Return the application, open to everyone: `guarded` puts the token before it. `reviewer` is the name to offer."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.board.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    _add_page(app)
    _add_lists(app, desk, reviewer)
    _add_images(app, desk)
    _add_decisions(app, desk)
    return app


def guarded(app: FastAPI, desk: Desk, token: str, host: str, port: int) -> Guard:
    """Return `app` behind its guard: for who has the token, asks by a name of `host`, and sends no more than a mask."""
    # A mask that no codec makes smaller, in base64.
    limit_bytes = SMALL_BODY_BYTES + 2 * desk.catalogue.largest_px()
    return Guard(app, token, names_of(host), port, limit_bytes)


def _add_page(app: FastAPI) -> None:
    @app.get("/")
    def page() -> Response:
        return _file_of_page(INDEX_PAGE)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        return _file_of_page(name)


def _file_of_page(name: str) -> Response:
    """Return a file of the page by its name: one of those that are there, never a path."""
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in CONTENT_TYPES}
    if name not in files:
        raise NoSuchTile(f"no file {name!r} of the page")
    headers = {"Cache-Control": ASK_AGAIN}
    return Response(files[name].read_bytes(), media_type=CONTENT_TYPES[files[name].suffix], headers=headers)


def _add_lists(app: FastAPI, desk: Desk, reviewer: str) -> None:
    @app.get("/api/review")
    def review() -> dict[str, Any]:
        return desk.about(reviewer)

    # All at once, and the tiles of some: a page goes by what a filter found, whatever is decided meanwhile.
    @app.get("/api/ranks")
    def ranks(asked: Annotated[AskedTiles, Query()]) -> Response:
        return JSONResponse({"ranks": (_found(desk, asked) + 1).tolist()})

    @app.get("/api/tiles")
    def tiles(asked: Annotated[AskedPage, Query()]) -> Response:
        if asked.ranks:
            rows = some = np.array(asked.ranks.split(","), np.int64) - 1
            if rows.max() >= len(desk.catalogue):
                raise NotAccepted(f"ranks: {rows.max() + 1}, but there are {len(desk.catalogue)} tiles")
        else:
            rows = _found(desk, asked)
            some = rows[asked.offset : asked.offset + asked.limit]
        shown_tiles = [
            tile | {"decisions": verdicts}
            for tile, verdicts in zip(desk.catalogue.tiles(some), desk.board.verdicts(some), strict=True)
        ]
        return JSONResponse({"total": len(rows), "offset": asked.offset, "tiles": shown_tiles})

    @app.get("/api/tiles/{tile_id}")
    async def tile(tile_id: str, reviewer: str = "") -> Response:
        return JSONResponse(await _in_thread(app, "looking", desk.tile, tile_id, reviewer or None))

    @app.get("/api/unlabelled")
    def unlabelled(
        offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 200
    ) -> Response:
        return JSONResponse({"total": desk.unlabelled.num_rows, "items": desk.unlabelled_items(offset, limit)})

    @app.get("/api/progress")
    def progress() -> Response:
        return JSONResponse(desk.board.progress())


def _found(desk: Desk, asked: AskedTiles) -> NDArray[np.int64]:
    """Return the rows of the tiles that are asked for; raise `NotAccepted` for a value that is not known."""
    wanted = Filter(_one_of("kind", asked.kind, ERROR_KINDS), asked.location or None, asked.query or None)
    stands = _one_of("verdict", asked.verdict, STANDINGS)
    among = None
    if stands is not None:
        among = desk.board.rows_with(stands, asked.reviewer or None)
    if asked.others:
        decided = desk.board.decided_by_others(asked.others)
        among = decided if among is None else among & decided
    return desk.catalogue.find(wanted, among, _one_of("sort", asked.sort, SORTS) or "rank")


def _add_images(app: FastAPI, desk: Desk) -> None:
    tile = "/api/tiles/{tile_id}/{sha256}"

    @app.get(f"{tile}/image/{{layer}}")
    async def image(
        tile_id: str,
        sha256: str,
        layer: PictureLayer,
        stretch: Stretch = "natural",
        max_px: Annotated[int | None, Query(ge=16, le=8192)] = None,
    ) -> Response:
        data = await _in_thread(app, "pictures", desk.picture, tile_id, sha256, layer, stretch, max_px)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": FOREVER})

    # Before the mask of any layer: this one is another with each decision.
    @app.get(f"{tile}/mask/label-now")
    async def label_now(request: Request, tile_id: str, sha256: str, reviewer: str) -> Response:
        raw = await _in_thread(app, "pictures", desk.label_now, tile_id, sha256, reviewer)
        return _raw(request, raw, "private, no-store")

    @app.get(f"{tile}/mask/{{layer}}")
    async def mask(request: Request, tile_id: str, sha256: str, layer: MaskLayer, v: str = "") -> Response:
        raw = await _in_thread(app, "pictures", desk.mask, tile_id, sha256, layer)
        return _raw(request, raw, FOREVER if layer == "label" or v == desk.version else ASK_AGAIN)

    @app.get(f"{tile}/values/{{layer}}")
    async def values(request: Request, tile_id: str, sha256: str, layer: ValueLayer, v: str = "") -> Response:
        raw = await _in_thread(app, "pictures", desk.values, tile_id, sha256, layer)
        return _raw(request, raw, FOREVER if v == desk.version else ASK_AGAIN)


def _add_decisions(app: FastAPI, desk: Desk) -> None:
    # One at a time of a reviewer, who numbers them; waiting for one's turn takes no thread.
    turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @app.post("/api/decisions")
    async def decide(asked: AskedDecision) -> Response:
        async with turns[asked.reviewer]:
            decision, is_new = await _in_thread(app, "writing", desk.decide, asked)
        standing = {name: shown(each) for name, each in desk.board.standing(asked.tile_id).items()}
        return JSONResponse({"decision": shown(decision), "standing": standing}, 201 if is_new else 200)

    @app.get("/api/decisions")
    async def decisions(
        after: Annotated[str, Query(max_length=100)] = "", limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = MOST_ROWS
    ) -> Response:
        await _in_thread(app, "looking", desk.board.refresh)
        cursor, found, more = desk.board.since(after, limit)
        return JSONResponse({"cursor": cursor, "decisions": [shown(each) for each in found], "more": more})


async def _in_thread(
    app: FastAPI, kind: str, work: Callable[Params, ResultT], *arguments: Params.args, **named: Params.kwargs
) -> ResultT:
    """Run `work`, which may wait for a store, in one of the threads of its kind."""
    if not hasattr(app.state, kind):  # a limiter belongs to the loop that it is made in
        setattr(app.state, kind, anyio.CapacityLimiter(THREADS[kind]))
    return await to_thread.run_sync(lambda: work(*arguments, **named), limiter=getattr(app.state, kind))


def _raw(request: Request, raw: Raw, cache_control: str) -> Response:
    headers = {"X-Height": str(raw.height), "X-Width": str(raw.width), "Cache-Control": cache_control}
    headers["Vary"] = "Accept-Encoding"
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(raw.zipped, media_type="application/octet-stream", headers=headers)
    return Response(gzip.decompress(raw.zipped), media_type="application/octet-stream", headers=headers)


def _one_of(name: str, found: str, known: tuple[Any, ...]) -> Any:
    """Return a value of a query, None for an empty one; raise `NotAccepted` for one that is not known."""
    if found and found not in known:
        raise NotAccepted(f"{name}: {found[:80]!r}, expected one of {', '.join(known)}")
    return found or None


def _add_errors(app: FastAPI) -> None:
    """Answer what is raised below with a status and a sentence."""

    def add(kind: type[Exception], status: int) -> None:
        @app.exception_handler(kind)
        async def answer(request: Request, error: Exception) -> Response:
            return JSONResponse({"error": first_line(error)}, status)

    add(NoSuchTile, 404)
    add(NotAccepted, 422)
    add(EntryTooLarge, 413)
    add(DataError, 500)
    add(RaytrainError, 503)
    add(ConfigError, 503)  # the shards went away while they are served
    add(OSError, 503)

    @app.exception_handler(OtherTile)
    async def other(request: Request, error: OtherTile) -> Response:
        what = (
            "is not in the shards any more" if error.found is None else "has changed in the shards since it was ranked"
        )
        text = f"tile {error.tile_id} {what}; nothing was written"
        return JSONResponse({"error": text, "tile_id": error.tile_id, "found": error.found}, 409)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        parts = [f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()[:5]]
        return JSONResponse({"error": "; ".join(parts)}, 422)
