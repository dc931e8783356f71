"""Artifacts in any file system that fsspec knows, with a bounded cache of local copies."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from fednano.errors import FednanoError, SettingsInvalid, StoreUnavailable
from services.aggregator.artifact_folder import SUFFIX, LocalFolder, move
from services.aggregator.disk_faults import disk_faults_named

TIMEOUT_S = 120.0
THREADS = 4
CACHE_BYTES = 1 << 30
# A merge reads its updates where it was told they are: copies in use are not dropped.
CACHE_GRACE_S = 600.0
NOTICE = b"Artifacts of a FedNano aggregator, each named by the SHA-256 of its bytes. No file here ever changes.\n"

Answer = TypeVar("Answer")


def open_place(url: str, cache: Path) -> "LocalFolder | Bucket":
    """A local folder for file:// and plain paths, a bucket for all else.

    Raises SettingsInvalid where fsspec cannot use the URL, StoreUnavailable where nothing can be written there now.
    """
    protocol, shown = urlsplit(url).scheme or "file", without_password(url)
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise SettingsInvalid(f"--artifacts: {protocol}:// needs a package that is not installed ({error})") from None
    except ValueError as error:
        raise SettingsInvalid(f"--artifacts: {error}") from None
    threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="artifacts")
    # Some file systems connect here.
    files, root = within_deadline(threads, lambda: fsspec.url_to_fs(url), shown)
    if isinstance(files, LocalFileSystem):
        return LocalFolder(Path(root))
    bucket = Bucket(files, root.rstrip("/"), shown, cache, threads)
    bucket.prove_writable()
    return bucket


def without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    shown = host if host == parts.netloc else f"***@{host}"
    return urlunsplit((parts.scheme, shown, parts.path, "", ""))


class Bucket:
    """See ``ArtifactPlace``. Each call to the file system ends, or fails as unavailable, within two minutes."""

    def __init__(
        self,
        files: AbstractFileSystem,
        root: str,
        shown: str,
        cache: Path,
        threads: Executor,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._files, self._root, self._shown = files, root, shown
        self._cache, self._cache_bytes = cache, cache_bytes
        self._threads = threads
        with disk_faults_named(cache):
            cache.mkdir(parents=True, exist_ok=True)

    def prove_writable(self) -> None:
        """Finds a wrong address or credential at the start, not at the first update."""
        self._within_deadline(lambda: self._files.pipe_file(f"{self._root}/README.txt", NOTICE))

    def adopt(self, file: Path, sha256: str) -> None:
        size_bytes = file.stat().st_size
        if self.size_bytes(sha256) != size_bytes:
            self._within_deadline(lambda: self._files.put_file(str(file), self._key(sha256)))
            found = self.size_bytes(sha256)
            if found != size_bytes:
                raise StoreUnavailable(f"{self._shown} holds {found} of {size_bytes} bytes of artifact {sha256}")
        with disk_faults_named(self._cache):
            move(file, self._copy(sha256))
            self._drop_oldest()

    def path(self, sha256: str) -> Path | None:
        copy = self._copy(sha256)
        with suppress(FileNotFoundError):
            os.utime(copy)
            return copy
        if self.size_bytes(sha256) is None:
            return None
        draft = self._cache / f"{sha256}.{time.monotonic_ns()}.part"
        try:
            self._within_deadline(lambda: self._download(sha256, draft))
            draft.replace(copy)
        finally:
            draft.unlink(missing_ok=True)
        self._drop_oldest()
        return copy

    def size_bytes(self, sha256: str) -> int | None:
        return self._within_deadline(lambda: self._find_size(sha256))

    def forget(self, sha256: str) -> bool:
        self._copy(sha256).unlink(missing_ok=True)
        return True

    def delete(self, sha256: str) -> int:
        self._copy(sha256).unlink(missing_ok=True)
        size_bytes = self.size_bytes(sha256)
        if size_bytes is None:
            return 0
        self._within_deadline(lambda: self._files.rm_file(self._key(sha256)))
        return size_bytes

    def __str__(self) -> str:
        return self._shown

    def _find_size(self, sha256: str) -> int | None:
        # What another process wrote is not in the file system's own listing.
        self._files.invalidate_cache()
        try:
            return int(self._files.info(self._key(sha256))["size"])
        except FileNotFoundError:
            return None

    def _download(self, sha256: str, target: Path) -> None:
        with disk_faults_named(target):
            self._files.get_file(self._key(sha256), str(target))

    def _key(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}{SUFFIX}"

    def _copy(self, sha256: str) -> Path:
        return self._cache / f"{sha256}{SUFFIX}"

    def _drop_oldest(self) -> None:
        """Drops the copies unused for longest, down to the bound, but none that was used just now."""
        copies = sorted(((path.stat(), path) for path in self._cache.glob(f"*{SUFFIX}")), key=lambda c: c[0].st_mtime)
        spare_bytes = sum(stat.st_size for stat, _ in copies) - self._cache_bytes
        for stat, path in copies:
            if spare_bytes <= 0 or stat.st_mtime > time.time() - CACHE_GRACE_S:
                return
            path.unlink(missing_ok=True)
            spare_bytes -= stat.st_size

    def _within_deadline(self, call: Callable[[], Answer]) -> Answer:
        return within_deadline(self._threads, call, self._shown)


def within_deadline(threads: Executor, call: Callable[[], Answer], shown: str) -> Answer:
    """Each driver has errors of its own: whatever it raises means that the place cannot be used now."""
    future = threads.submit(call)
    try:
        fault = future.exception(timeout=TIMEOUT_S)
    except TimeoutError:
        future.cancel()
        raise StoreUnavailable(f"{shown} did not answer within {TIMEOUT_S:g} s: it is tried again") from None
    if fault is None:
        return future.result()
    if isinstance(fault, FednanoError):
        raise fault
    words = f"{type(fault).__name__}: {fault}"
    raise StoreUnavailable(f"{shown} cannot be used now ({words}): it is tried again") from fault
