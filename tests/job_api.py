"""A job API in this process that answers as Ray's does, for tests of what is asked of it; it runs no job."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any, Self

from aiohttp import WSCloseCode, web

TOKEN = "a-token-of-tests"


class JobApi:
    """Serves on loopback within a `with`. `jobs` are Ray's records by id, `logs` what each wrote so far.

    `before` is called with (method, path) and may return an answer in place of ours; `after` with (method, path) and
    may return True, so that the answer is lost though the request was done. `log_pieces`: so many characters of a log
    go over a connection before it breaks; None: all. `packages` are what was uploaded.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.packages: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.log_pieces: list[int] = []
        self.before: Any = lambda method, path: None
        self.after: Any = lambda method, path: False
        self.on_start: Any = lambda job: None

    def add(self, name: str, status: str, **more: Any) -> dict[str, Any]:
        """Have a job, and return its record."""
        now = int(time.time() * 1000)
        self.jobs[name] = {
            "type": "SUBMISSION",
            "submission_id": name,
            "job_id": None,
            "status": status,
            "entrypoint": "",
            "start_time": now + len(self.jobs),
            "end_time": now if status != "RUNNING" else None,
            "metadata": {},
            "runtime_env": {},
        } | more
        return self.jobs[name]

    def end(self, name: str, status: str, exit_code: int | None) -> None:
        """End a job."""
        self.jobs[name] |= {"status": status, "driver_exit_code": exit_code, "end_time": int(time.time() * 1000)}

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(middlewares=[self._middleware], client_max_size=1 << 26)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{protocol}/{name}", self._has_package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._put_package)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{id}", self._job)
        app.router.add_post("/api/jobs/{id}/stop", self._stop)
        app.router.add_get("/api/jobs/{id}/logs", self._log)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        sent = request.headers.get("Authorization")
        if sent != f"Bearer {TOKEN}":
            return web.Response(status=403 if sent else 401, text="Unauthorized")
        answer = self.before(request.method, request.path)
        if answer is None:
            answer = await handler(request)
            if self.after(request.method, request.path):
                assert request.transport is not None
                request.transport.abort()
        assert isinstance(answer, web.StreamResponse)
        return answer

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def _has_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = asked["submission_id"]
        if name in self.jobs:  # as Ray's head tells what its agent refused
            text = (
                f"Traceback ...\nValueError: Job with submission_id {name} already exists. Please use a different one."
            )
            return web.Response(status=500, text=text)
        fields = {each: asked[each] for each in ("entrypoint", "metadata", "runtime_env")}
        self.on_start(self.add(name, "RUNNING", **fields))
        return web.json_response({"job_id": name, "submission_id": name})

    async def _job(self, request: web.Request) -> web.Response:
        found = self.jobs.get(request.match_info["id"])
        return web.Response(status=404, text="no such job") if found is None else web.json_response(found)

    async def _stop(self, request: web.Request) -> web.Response:
        self.end(request.match_info["id"], "STOPPED", None)
        return web.Response(text=json.dumps({"stopped": True}))

    async def _log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.logs.get(request.match_info["id"], "")})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        name, sent = request.match_info["id"], 0
        limit = self.log_pieces.pop(0) if self.log_pieces else None
        while True:
            text = self.logs.get(name, "")[sent:limit]
            if text:
                sent += len(text)
                await socket.send_str(text)
            if limit is not None and sent >= limit:
                assert request.transport is not None
                # Half of all breaks look like a regular end.
                (request.transport.abort if limit % 2 else request.transport.close)()
                return socket
            if self.jobs[name]["status"] != "RUNNING" and not self.logs.get(name, "")[sent:limit]:
                await socket.close(code=WSCloseCode.OK)
                return socket
            await asyncio.sleep(0.02)
