"""A checkpoint on the Hugging Face hub, of which no more is fetched than is asked for.

What will be read for the greater part comes as a file into the hub's cache; of other files come single ranges of bytes.
"""

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    httpx,
)

from fednano.errors import ModelInvalid

Found = TypeVar("Found")
RANGE_TIMEOUT_S = 60.0
_PARTIAL_CONTENT = 206


class HubRepository:
    """``revision`` is a branch, a tag or a commit; empty: what the default branch is now. It stays at one commit."""

    def __init__(self, name: str, *, revision: str = "", endpoint: str | None = None) -> None:
        self.name = name
        self._api = HfApi(endpoint=endpoint)
        self._revision = revision or None
        self._fetched: dict[str, Path] = {}

    def read(self, name: str) -> bytes | None:
        if name not in self._files:
            return None
        return self._fetch(name).read_bytes()

    def size_bytes(self, name: str) -> int:
        if name not in self._files:
            raise ModelInvalid(f"{self.name} has no file {name}", file=name)
        return self._files[name]

    def read_at(self, name: str, start: int, length: int) -> bytes:
        if name in self._fetched:
            with self._fetched[name].open("rb") as file:
                file.seek(start)
                return file.read(length)
        return self._asked(name, lambda: self._range(name, start, length)) if length else b""

    def will_read(self, names: Collection[str]) -> None:
        for name in names:
            self._fetch(name)

    @cached_property
    def _commit(self) -> Any:
        return self._asked("", lambda: self._api.model_info(self.name, revision=self._revision, files_metadata=True))

    @cached_property
    def _files(self) -> dict[str, int]:
        return {file.rfilename: int(file.size or 0) for file in self._commit.siblings or ()}

    def _fetch(self, name: str) -> Path:
        if name not in self._fetched:
            path = self._asked(name, lambda: self._api.hf_hub_download(self.name, name, revision=self._commit.sha))
            self._fetched[name] = Path(path)
        return self._fetched[name]

    def _range(self, name: str, start: int, length: int) -> bytes:
        url = hf_hub_url(self.name, name, revision=self._commit.sha, endpoint=self._api.endpoint)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{start + length - 1}"}
        # There are hundreds: one that gets lost, or comes too soon, is asked for again.
        response = http_backoff("GET", url, headers=headers, follow_redirects=True, timeout=RANGE_TIMEOUT_S)
        hf_raise_for_status(response)
        if response.status_code != _PARTIAL_CONTENT:
            raise ModelInvalid(f"{self.name}: the hub gives no part of {name}: fetch the repository, give its folder")
        content: bytes = response.content
        return content

    def _asked(self, name: str, ask: Callable[[], Found]) -> Found:
        try:
            return ask()
        except (httpx.HTTPError, HFValidationError, OSError) as error:
            message = f"{self.name}: {name or 'the repository'} cannot be had from the hub: {error}"
            raise ModelInvalid(message, model=self.name, file=name) from error
