"""Servers of the tests' own: with TLS, and to be stopped, killed and started again.

The machine's own servers are other people's, too; these run beside them on free ports of
127.0.0.1, keep their files in one temporary folder and go with it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import psutil

from certificates import Authority
from requirement import missing
from services import clients
from services.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

START_S = 60
END_S = 10


class Server:
    """One server, which speaks TLS on its port."""

    service: ClassVar[clients.Service]
    program: ClassVar[str]
    package: ClassVar[str]  # Debian's
    folders: ClassVar[Sequence[str]] = ()  # where the program may be, besides PATH
    account: ClassVar[str | None] = None  # for a program that refuses to be root

    def __init__(self) -> None:
        places = os.pathsep.join([os.environ["PATH"], "/usr/sbin", *self.folders])
        found = shutil.which(self.program, path=places)
        if found is None:
            missing(f"there is no {self.program}: apt install {self.package}")
        self.path = str(found)
        self.folder = Path(tempfile.mkdtemp(prefix="ringloop-"))
        authority = Authority(self.folder)
        self.ca = authority.path
        self.certificate = authority.issue("127.0.0.1", "localhost")  # with its key
        self.certificate.chmod(0o600)
        self.port = free_port()
        self.user = self.account if os.getuid() == 0 else None
        self.folder.chmod(0o755)
        if self.user is not None:
            for path in (self.folder, self.certificate):
                shutil.chown(path, self.user)
        self._running: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self.log = self.folder / "log"
        self.prepare()

    @property
    def address(self) -> clients.Service:
        return replace(self.service, host="127.0.0.1", port=self.port)

    def prepare(self) -> None:
        """Make what the server starts from."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=START_S).close()
        except OSError:
            return False
        return True

    def is_up(self) -> bool:
        running = self._running is not None and self._running.poll() is None
        return running and not self._frozen and self.ready()

    def run(self, *command: str) -> None:
        with self.log.open("ab") as log:
            subprocess.run(
                command, user=self.user, cwd=self.folder, stdout=log, stderr=log, check=True
            )

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._frozen = False
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self.command(),
                user=self.user,
                env=self.environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self.ready():
            end = self.log.read_text()[-2000:]
            assert self._running.poll() is None, f"it ended:\n{end}"
            assert time.monotonic() < deadline, f"it does not answer:\n{end}"
            time.sleep(0.05)

    def _signal(self, number: int) -> list[psutil.Process]:
        """Send a signal to all of the server's processes, the parents first."""
        if self._running is None or self._running.poll() is not None:
            return []
        parent = psutil.Process(self._running.pid)
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return processes

    def freeze(self) -> None:
        """From now on it takes what comes, and answers nothing."""
        self._frozen = True
        self._signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it at once; its connections end as the kernel ends them."""
        processes = self._signal(signal.SIGKILL)
        if self._running is not None:
            self._running.wait(END_S)
        _, alive = psutil.wait_procs(processes, END_S)
        assert not alive, f"still there: {alive}"

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)


class PostgreSQL(Server):
    service = clients.Service("PostgreSQL", "", 0, user="postgres", database="postgres")
    program = "postgres"
    package = "postgresql"
    folders = tuple(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin"))
    account = "postgres"

    def prepare(self) -> None:
        self.bin = Path(self.path).resolve().parent
        initdb = [f"{self.bin}/initdb", "--pgdata=data", "--username=postgres", "--auth=trust"]
        self.run(*initdb, "--no-sync", "--no-locale", "--encoding=UTF8")

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": self.certificate,
            "ssl_key_file": self.certificate,
        }
        given = [f"--{name}={value}" for name, value in settings.items()]
        return [f"{self.bin}/postgres", "-D", "data", *given]

    def ready(self) -> bool:
        command = [f"{self.bin}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0


class MariaDB(Server):
    service = clients.Service("MariaDB", "", 0, user="root", database="test")
    program = "mariadbd"
    package = "mariadb-server"

    def prepare(self) -> None:
        as_root = "--auth-root-authentication-method=normal"  # that is, without a password
        user = f"--user={getpass.getuser()}"
        data = f"--datadir={self.folder}/data"
        self.run("mariadb-install-db", "--no-defaults", data, as_root, user)

    def command(self) -> list[str]:
        settings = {
            "user": getpass.getuser(),
            "datadir": self.folder / "data",
            "bind-address": "127.0.0.1",
            "port": self.port,
            "socket": self.folder / "socket",
            "pid-file": self.folder / "pid",
            "innodb-flush-log-at-trx-commit": 0,
            "ssl-cert": self.certificate,
            "ssl-key": self.certificate,
        }
        return [self.path, "--no-defaults", *(f"--{n}={value}" for n, value in settings.items())]


class Redis(Server):
    service = clients.Service("Redis", "", 0)
    program = "redis-server"
    package = "redis-server"

    def command(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": 0,
            "tls-port": self.port,
            "tls-cert-file": self.certificate,
            "tls-key-file": self.certificate,
            "tls-ca-cert-file": self.certificate,
            "tls-auth-clients": "no",
            "save": "",
        }
        pairs = [(f"--{name}", str(value)) for name, value in settings.items()]
        return [self.path, *(word for pair in pairs for word in pair)]


class RabbitMQ(Server):
    service = clients.Service("RabbitMQ", "", 0, user="guest", password="guest")
    program = "rabbitmq-server"
    package = "rabbitmq-server"

    def prepare(self) -> None:
        # Debian's on PATH becomes another user first, and that one cannot write here.
        behind = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        self.path = str(behind) if behind.exists() else self.path
        self.node_port = free_port()
        settings = {
            "listeners.tcp": "none",
            "listeners.ssl.1": f"127.0.0.1:{self.port}",
            "ssl_options.certfile": self.certificate,
            "ssl_options.keyfile": self.certificate,
            "log.console": "true",
        }
        lines = (f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "rabbitmq.conf").write_text("".join(lines))

    def command(self) -> list[str]:
        return [self.path]

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "HOME": str(self.folder),  # for the cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"ringloop-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.node_port),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
        }


class Mosquitto(Server):
    service = clients.Service("an MQTT broker", "", 0)
    program = "mosquitto"
    package = "mosquitto"

    def prepare(self) -> None:
        lines = [
            f"user {getpass.getuser()}",
            "allow_anonymous true",
            f"listener {self.port} 127.0.0.1",
            f"certfile {self.certificate}",
            f"keyfile {self.certificate}",
        ]
        (self.folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [self.path, "-c", "mosquitto.conf"]


class Nats(Server):
    service = clients.Service("NATS with JetStream", "", 0)
    program = "nats-server"
    package = "nats-server"

    def command(self) -> list[str]:
        where = ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", "jetstream"]
        tls = ["--tls", "--tlscert", str(self.certificate), "--tlskey", str(self.certificate)]
        return [self.path, *where, *tls]


SERVERS: dict[clients.Service, type[Server]] = {
    clients.POSTGRESQL: PostgreSQL,
    clients.MARIADB: MariaDB,
    clients.REDIS: Redis,
    clients.RABBITMQ: RabbitMQ,
    clients.MOSQUITTO: Mosquitto,
    clients.NATS: Nats,
}
