"""A certificate authority and one certificate for 127.0.0.1, made anew by the openssl command for a measurement."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """PEM files. The one certificate serves both ends."""

    authority: Path
    certificate: Path
    key: Path


def absent() -> str:
    """Why there can be no certificates; empty where there can be."""
    return "" if shutil.which("openssl") else "the openssl command is not here"


def make_certificates(folder: Path) -> Certificates:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "extensions").write_text(EXTENSIONS)
    _openssl(
        folder, "req", "-x509", *NEW_KEY, "-subj", "/CN=benchmark authority", "-keyout", "ca.key", "-out", "ca.pem"
    )
    _openssl(folder, "req", *NEW_KEY[:-2], "-subj", "/CN=localhost", "-keyout", "end.key", "-out", "end.csr")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions")
    _openssl(folder, "x509", "-req", "-in", "end.csr", *signing, "-out", "end.pem")
    return Certificates(authority=folder / "ca.pem", certificate=folder / "end.pem", key=folder / "end.key")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S607
