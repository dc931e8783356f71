"""What the doctor finds on this machine: device, memory, disk, model, examples, certificate."""

import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch

from fednano.data.census import take_census
from fednano.data.folder import load_examples, open_folder
from fednano.host_memory import free_memory_bytes
from fednano.model.manifest import check_files, read_manifest
from fednano.model.parts import EdgeParts, load_edge, resolve_model
from fednano.model.placement import choose_device, choose_encoder_type
from fednano.security.identity import Role, identity_of
from fednano.security.pem_files import WARNING_DAYS, PemFiles
from fednano.security.revocation import RevocationList
from services.client.checks import Row, fail, ok, warn
from services.client.examples import unknown_answers
from services.client.joining import pooled_folders
from services.client.settings import ClientSettings

GIB = 1 << 30
# Of the process itself: torch, gRPC and what a step holds.
BASE_BYTES = GIB // 2
LEAST_FREE_BYTES = GIB // 4


def check_device(settings: ClientSettings) -> list[Row]:
    device = choose_device(settings.device)
    encoder_type = str(choose_encoder_type(settings.encoder_type, device)).removeprefix("torch.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    what = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    found = f"{device.type}: {what}encoders in {encoder_type}, {settings.threads} of {cores} CPU cores"
    if settings.threads > cores:
        return [warn("device", found, f"give --threads {cores} or fewer: more only get in each other's way")]
    return [ok("device", found)]


def load_model(settings: ClientSettings, parts: list[EdgeParts]) -> list[Row]:
    """Puts the edge half into ``parts`` where it can be read."""
    folder = resolve_model(settings.model) / "edge"
    parts.append(load_edge(folder))
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    checked = f", {len(manifest.files)} files as its manifest says" if manifest.files else ""
    return [ok("model", f"{manifest.model} ({manifest.family}), language half {manifest.digest[:12]}{checked}")]


def check_memory(settings: ClientSettings, parts: EdgeParts | None) -> list[Row]:
    """What is free, against what this client may take."""
    free_bytes = free_memory_bytes()
    if parts is None or free_bytes is None:
        return [warn("memory", "not known", "look at it yourself")]
    pieces = (parts.vision_encoder, parts.connector, parts.token_embedding, *([parts.head] if parts.head else []))
    weights = {parameter.data_ptr(): parameter.nbytes for piece in pieces for parameter in piece.parameters()}
    need_bytes = sum(weights.values()) + settings.feature_memory_bytes + BASE_BYTES
    found = f"{_gib(free_bytes)} free, this client may take {_gib(need_bytes)}"
    if free_bytes < need_bytes:
        return [warn("memory", found, "give a smaller --feature-memory-bytes, or end other processes")]
    return [ok("memory", found)]


def check_disk(settings: ClientSettings) -> list[Row]:
    if settings.state is None and settings.feature_folder is None:
        return [warn("disk", "nothing is kept", "give --state DIR: a client that is killed then goes on where it was")]
    rows = []
    for name, folder, need_bytes in (
        ("disk, state", settings.state, LEAST_FREE_BYTES),
        ("disk, features", settings.feature_folder, settings.feature_cache_bytes),
    ):
        if folder is not None:
            rows.append(_disk(name, folder, need_bytes))
    return rows


def _disk(name: str, folder: Path, need_bytes: int) -> Row:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return fail(name, f"{there} cannot be written to", "give this user the folder, or name another")
    free_bytes = shutil.disk_usage(there).free
    held_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    found = f"{folder}: {_gib(free_bytes)} free, {_gib(held_bytes)} held"
    if free_bytes < LEAST_FREE_BYTES:
        return fail(name, found, "make room: nothing can be saved")
    if free_bytes + held_bytes < need_bytes:
        return warn(name, f"{found}, up to {_gib(need_bytes)} wanted", "make room, or give --feature-cache-bytes less")
    return ok(name, found)


def check_examples(settings: ClientSettings, parts: EdgeParts | None) -> list[Row]:
    folders = pooled_folders(settings.examples) if settings.pooled else [settings.examples]
    return [row for folder in folders for row in _examples_in(folder, settings, parts)]


def _examples_in(folder: Path, settings: ClientSettings, parts: EdgeParts | None) -> Iterator[Row]:
    name = f"examples, {folder.name}" if settings.pooled else "examples"
    census = take_census(open_folder(folder))
    counts = ", ".join(f"{split} {found.examples}" for split, found in census.items())
    lacking = sum(found.missing_images for found in census.values())
    needed = ("train", settings.evaluate_on)
    missing = [split for split in needed if split not in census or not census[split].examples]
    if missing:
        yield fail(name, f"{folder}: no example in {' and '.join(missing)}; there are {counts or 'none'}", "add some")
    elif lacking:
        yield fail(name, f"{folder}: {counts}; {lacking} images are missing", "`fednano data check` names them")
    elif parts is None:
        yield warn(name, f"{folder}: {counts}; not compared with the model", "set the model right first")
    else:
        yield _spelling(name, folder, counts, [_unknown(folder, split, parts) for split in needed], parts)


def _unknown(folder: Path, split: str, parts: EdgeParts) -> tuple[int, int]:
    """Answers that the model cannot spell, and all."""
    examples = load_examples(folder, split)
    return unknown_answers(examples, parts), len(examples)


def _spelling(name: str, folder: Path, counts: str, found: Sequence[tuple[int, int]], parts: EdgeParts) -> Row:
    unknown, example_count = (sum(numbers) for numbers in zip(*found, strict=True))
    words = f"{folder}: {counts}; the model can spell {example_count - unknown} of {example_count} answers"
    if any(one == of for one, of in found):
        return fail(name, words, f"use another model than {parts.manifest.model}")
    if unknown:
        return warn(name, words, "those examples are never answered right: leave them out, or use another model")
    return ok(name, words)


def check_certificate(settings: ClientSettings) -> list[Row]:
    name = "certificate"
    if settings.insecure:
        return [warn(name, "none: --insecure, everybody on the way reads along", "only for one trusted machine")]
    credentials = PemFiles(settings.security).current
    identity = identity_of(credentials.certificate)
    days = (identity.not_after - datetime.now(UTC)) / timedelta(days=1)
    found = f"{identity}, serial {identity.serial_hex}, {days:.0f} days left"
    if (identity.role, identity.id) != (Role.CLIENT, settings.client_id):
        whose = f"client/{settings.client_id}"
        return [fail(name, f"{found}; this is {whose}", f"`fednano certs issue DIR client {settings.client_id}`")]
    if _is_revoked(settings, identity.serial):
        return [fail(name, f"{found}; revoked", "enrol anew: `fednano client enroll`")]
    if not credentials.is_chained:
        names = ", ".join(authority.subject.rfc4514_string() for authority in credentials.authorities)
        words = f"{found}; not issued by {names}"
        return [fail(name, words, "give --tls-ca the ca.crt that came with the certificate")]
    if days < WARNING_DAYS:
        return [warn(name, found, "renew it: `fednano certs issue`, or enrol anew; a running client takes it up")]
    return [ok(name, found)]


def _is_revoked(settings: ClientSettings, serial: int) -> bool:
    if settings.tls_crl is None or settings.tls_ca is None:
        return False
    return RevocationList(settings.tls_crl, settings.tls_ca).has(serial)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
