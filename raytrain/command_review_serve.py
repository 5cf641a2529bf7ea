"""`raytrain review serve`: its options, what it prints. Must not know arithmetic."""

from __future__ import annotations

import contextlib
import getpass
import logging
import re
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from raytrain import storage
from raytrain.command import Command, local_folder
from raytrain.config import PLAIN_NAME, LoaderSettings
from raytrain.console import Narrator
from raytrain.errors import EXIT_DONE, ConfigError


class Serve(Command):
    """Serve the page to go through a ranking: look at labels, decide, repair. Ctrl-C ends it; no decision is lost."""

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder of the review, which `raytrain review rank` made."""
    host: str = "127.0.0.1"
    """The address to listen at. Any other than this machine's own lets others in, who need the token, unencrypted."""
    port: int = Field(default=8642, ge=0, le=65535)
    """The port to listen at; 0 takes any that is free."""
    reviewer: str | None = None
    """The name that the page offers for who decides; by default the user's. Each page may say another."""
    token_file: str | None = None
    """A file that keeps the token from start to start; made if absent. By default each start has a fresh one."""
    cache_folder: str | None = None
    """A folder on a local disk where bytes of remote shards are kept (at most 100 GB)."""
    open_browser: Annotated[bool, tyro.conf.arg(name="open")] = False
    """Open the page in the browser of this machine."""

    def run(self, narrator: Narrator) -> int:
        """Serve until interrupted."""
        from raytrain.review import access, serving
        from raytrain.review.desk import Desk

        reviewer = self._reviewer()
        token = access.new_token() if self.token_file is None else access.token_of_file(Path(self.token_file))
        loader = None
        if self.cache_folder is not None:
            loader = LoaderSettings(cache_folder=local_folder("--cache-folder", self.cache_folder))
        desk = Desk(storage.normalise(self.dst), loader)
        for problem in desk.board.problems:
            narrator.say(f"raytrain: warning: {problem}; left out", logging.WARNING)
        with serving.listening(self.host, self.port) as listener:
            url = serving.url_of(self.host, listener, token)
            if not access.is_loopback(self.host):
                text = "others reach it, and what goes to and fro is not encrypted, the token included"
                narrator.say(f"raytrain: warning: listening at {self.host}: {text}", logging.WARNING)
            self._print({"url": url, "num_tiles": len(desk.catalogue), "reviewer": reviewer}, [url])
            with serving.opened(url) if self.open_browser else contextlib.nullcontext():
                serving.serve(desk, reviewer, token, self.host, listener)
        return EXIT_DONE

    def _reviewer(self) -> str:
        """Return the name to offer; raise `ConfigError` for one that can't be a folder's."""
        if self.reviewer is None:
            return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]", "", _user())[:200] or "reviewer"
        if not re.fullmatch(PLAIN_NAME, self.reviewer):
            raise ConfigError(f"--reviewer {self.reviewer!r}: expected letters, digits, '.', '_' and '-', at most 200")
        return self.reviewer

    def uris(self) -> list[str]:
        """Return the folder of the review."""
        return [self.dst]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return ""
