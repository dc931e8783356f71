"""`fednano ask`: whom it asks."""

import asyncio
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from fednano.cli.app import app
from fednano.config import Security
from fednano.model.adapter import NanoAdapters
from fednano.rpc.server import serving
from fednano.security.authority import create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role


async def test_a_server_whose_certificate_was_revoked_is_not_asked(tmp_path: Path) -> None:
    authority, _ = create_authority(tmp_path / "ca")
    theirs, ours = (authority.issue(Subject(role=role, id="a")) for role in (Role.SERVER, Role.CLIENT))
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    adapters = NanoAdapters(["image", "text"], hidden_size=128, rank=2, alpha=4.0)
    save_file(dict(adapters.state_dict()), tmp_path / "adapter.safetensors")
    authority.revoke(Role.SERVER, "a")
    files = [
        f"--tls-{name}={ours / file}" for name, file in (("ca", "ca.crt"), ("cert", "tls.crt"), ("key", "tls.key"))
    ]
    words = ["ask", "--image", f"{tmp_path / 'picture.png'}", "--adapter", f"{tmp_path / 'adapter.safetensors'}"]
    words += ["--question", "which figure?", *files, "--tls-crl", f"{authority.folder / 'ca.crl'}"]
    security = Security(tls_ca=theirs / "ca.crt", tls_cert=theirs / "tls.crt", tls_key=theirs / "tls.key")
    async with serving({}, "127.0.0.1:0", security, grace_s=0.0) as running:
        done = await asyncio.to_thread(CliRunner().invoke, app, [*words, "--server", running.address])
    assert done.exit_code == 4, done.output
    assert "is revoked" in done.output
