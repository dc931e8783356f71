"""Pictures through the frozen encoders: computed once, kept within bounds, and there again when they are asked for.

P: image tokens   D: hidden size   B: batch   C: colour channels   H, W: height and width in pixels
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fednano.model.edge import image_embeds
from fednano.model.parts import EdgeParts
from fednano.telemetry import get_logger
from services.client.feature_cache import FeatureCache
from services.client.fitting import FittingSize, pieces
from services.client.pictures import Decoded, Picture, decode

log = get_logger("client.features")
PROGRESS_S = 10.0


@dataclass(frozen=True, kw_only=True)
class FeatureBounds:
    """How pictures are encoded, and how much of what comes of it stays in memory."""

    encoder_batch: int = 64
    memory_bytes: int = 1 << 29
    decode_workers: int = 2


class Features:
    """Of one edge half, for one thread at a time. Whether they were kept or computed anew changes no bit on a CPU.

    A GPU's numbers may depend on which pictures went through it together.
    """

    def __init__(
        self, parts: EdgeParts, bounds: FeatureBounds | None = None, cache: FeatureCache | None = None
    ) -> None:
        self._parts, self._cache = parts, cache
        self._bounds = bounds or FeatureBounds()
        self._fitting = FittingSize("encoding pictures")
        self._sha256_of: dict[Path, str] = {}
        # Least recently used first.
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self.memory_bytes = 0
        # Of one picture, once that is known.
        self._size_bytes = 1

    def sha256_of(self, path: Path) -> str:
        """The picture's bytes when ``prepare`` read them."""
        return self._sha256_of[path]

    def prepare(self, split: str, pictures: Sequence[Picture], check: Callable[[], None] = lambda: None) -> None:
        """Reads every picture once, and encodes those that are not kept yet, as many as there is room for.

        Raises ExamplesInvalid for one that cannot be decoded. ``check`` is called often, and may raise to end it.
        """
        new = [picture for picture in _distinct(pictures) if picture.path not in self._sha256_of]
        start_s = told_s = time.monotonic()
        read_count = encoded_count = 0
        for group in self._read(new, self._is_wanted):
            for decoded in group:
                self._sha256_of[decoded.picture.path] = decoded.sha256
            encoded_count += len(self._encode(group))
            read_count += len(group)
            check()
            if time.monotonic() - told_s > PROGRESS_S:
                told_s = time.monotonic()
                log.info("encoding", split=split, pictures=len(new), read=read_count, encoded=encoded_count)
        seconds = round(time.monotonic() - start_s, 3)
        log.info("pictures_ready", split=split, pictures=len(new), encoded=encoded_count, seconds=seconds)

    def of(self, pictures: Iterable[Picture]) -> dict[Path, Tensor]:
        """[P, D] in float32 on the CPU, of pictures that are prepared. Raises ExamplesInvalid for one that changed."""
        wanted = _distinct(pictures)
        found = {picture.path: self._kept(self.sha256_of(picture.path)) for picture in wanted}
        missing = [picture for picture in wanted if found[picture.path] is None]
        for group in self._read(missing, lambda _: True):
            for decoded in group:
                decoded.check_unchanged(self.sha256_of(decoded.picture.path))
            encoded = self._encode(group)
            found |= {decoded.picture.path: encoded[decoded.sha256] for decoded in group}
        return {path: embeds_PD.float() for path, embeds_PD in found.items() if embeds_PD is not None}

    def close(self) -> None:
        """Lets another process have what is kept on disk."""
        if self._cache is not None:
            self._cache.close()

    def _is_wanted(self, sha256: str) -> bool:
        """Whether a picture is to be encoded ahead. May be asked in any thread."""
        if sha256 in self._memory or (self._cache is not None and self._cache.has(sha256)):
            return False
        return self._memory_room(self._size_bytes) or (
            self._cache is not None and self._cache.has_room(self._size_bytes)
        )

    def _read(self, pictures: Sequence[Picture], is_wanted: Callable[[str], bool]) -> Iterator[list[Decoded]]:
        """In groups for the encoder, decoded by other threads while the one before is computed with."""
        processor, size = self._parts.processor, self._bounds.encoder_batch
        if not self._bounds.decode_workers or len(pictures) < 2:
            for group in pieces(pictures, size):
                yield [decode(picture, processor, is_wanted) for picture in group]
            return
        with ThreadPoolExecutor(self._bounds.decode_workers, "decode") as pool:
            ahead: deque[Future[Decoded]] = deque()
            rest = iter(pictures)
            try:
                for group in pieces(pictures, size):
                    # Two groups at most: that is how many pictures lie in memory decoded.
                    while len(ahead) < 2 * size and (picture := next(rest, None)) is not None:
                        ahead.append(pool.submit(decode, picture, processor, is_wanted))
                    yield [ahead.popleft().result() for _ in group]
            finally:
                for future in ahead:
                    future.cancel()

    def _encode(self, group: Sequence[Decoded]) -> dict[str, Tensor]:
        """Keeps them too, by their SHA-256; those that came without pixels are left out."""
        pixels = {one.sha256: one.pixels_CHW for one in group if one.pixels_CHW is not None}

        def attempt(size: int) -> list[Tensor]:
            return [
                embeds_PD for piece in pieces(list(pixels.values()), size) for embeds_PD in _embeds(self._parts, piece)
            ]

        encoded = dict(zip(pixels, self._fitting.run(len(pixels), attempt), strict=True)) if pixels else {}
        for sha256, embeds_PD in encoded.items():
            self._size_bytes = embeds_PD.nbytes
            if self._cache is not None:
                self._cache.put(sha256, embeds_PD)
            self._remember(sha256, embeds_PD)
        return encoded

    def _kept(self, sha256: str) -> Tensor | None:
        if sha256 in self._memory:
            self._memory.move_to_end(sha256)
            return self._memory[sha256]
        embeds_PD = self._cache.get(sha256) if self._cache is not None else None
        if embeds_PD is not None:
            self._remember(sha256, embeds_PD)
        return embeds_PD

    def _remember(self, sha256: str, embeds_PD: Tensor) -> None:
        if sha256 in self._memory or embeds_PD.nbytes > self._bounds.memory_bytes:
            return
        while not self._memory_room(embeds_PD.nbytes):
            _, oldest_PD = self._memory.popitem(last=False)
            self.memory_bytes -= oldest_PD.nbytes
        self._memory[sha256] = embeds_PD
        self.memory_bytes += embeds_PD.nbytes

    def _memory_room(self, size_bytes: int) -> bool:
        return self.memory_bytes + size_bytes <= self._bounds.memory_bytes


def _embeds(parts: EdgeParts, pixels: Sequence[Tensor]) -> list[Tensor]:
    """Each picture's [P, D] in memory of its own, on the CPU.

    One picture goes through twice: a batch of one takes other kernels on a CPU, with other last bits.
    """
    pixels_BCHW = torch.stack([*pixels, *pixels] if len(pixels) == 1 else list(pixels))
    embeds_BPD = image_embeds(parts, pixels_BCHW).cpu()
    return [embeds_BPD[index].clone() for index in range(len(pixels))]


def _distinct(pictures: Iterable[Picture]) -> list[Picture]:
    """The first of each path."""
    return list({picture.path: picture for picture in reversed(list(pictures))}.values())[::-1]
