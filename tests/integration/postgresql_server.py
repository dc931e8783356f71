"""A PostgreSQL server of the system's packages, in a temporary folder, reached by a socket in it alone."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

USER = "postgres"
TIMEOUT_S = 30
# Where there is such a folder, its files are in memory.
IN_MEMORY = Path("/dev/shm")  # noqa: S108


def binaries() -> Path | None:
    """The folder of the newest installed server's programs."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    on_path = shutil.which("pg_ctl")
    folders += [Path(on_path).parent] if on_path else []
    return next((folder for folder in reversed(folders) if (folder / "initdb").is_file()), None)


class PostgresqlServer:
    """Starts, stops and dies as a test asks; every database in it goes with the folder."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # A socket's path is short, and the server's own user must reach it: not below pytest's folders.
        self.folder = Path(tempfile.mkdtemp(prefix="fednano-pg-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._run("initdb", "--no-sync", "--auth=trust", f"--username={USER}", "--locale=C.UTF-8", "--encoding=UTF8")

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=20"
        log = str(self.folder / "log")
        self._run("pg_ctl", "start", "--wait", "--silent", "--log", log, "--options", options)

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` is as a crash: nothing is written, every session ends."""
        self._run("pg_ctl", "stop", "--wait", "--silent", "--mode", mode)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self.folder}"

    def create_database(self, name: str, template: str = "template1") -> str:
        """A copy of the template; returns its URL."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        return self.url(name)

    def execute(self, statement: str) -> None:
        with psycopg.connect(host=str(self.folder), user=USER, dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._programs / program), "--pgdata", str(self.folder / "db"), *arguments]
        with (self.folder / "output").open("ab") as output:
            done = subprocess.run(command, cwd="/", timeout=TIMEOUT_S, stdout=output, stderr=output)
        assert done.returncode == 0, (self.folder / "output").read_text()[-2000:]
