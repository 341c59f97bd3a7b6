"""The processes that ``accelerate launch`` starts: who this one is, and the channel over which the first directs the others.

Every process runs the command. The first one (rank 0) plans, locks, shows, commits and speaks; the others do what they are told
over a socket to it. Nothing times out while the first one works alone, and the end of either side closes the socket, so that a
killed process is noticed at once; a machine that vanishes is noticed by TCP's keepalive, within half a minute.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from harness.plan import Stage

#: Environment that a launcher sets for each process; only stages that are computed together may see it.
_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "GROUP_", "ROLE_")
#: How long the processes of one command may take to find each other, and to say that they have ended.
ASSEMBLE_SECONDS = 300.0
FAREWELL_SECONDS = 30.0
#: Idle seconds before a silent connection is probed, seconds between probes, probes before it counts as broken.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Membership:
    """This process's place among those of one launch.

    Attributes:
        rank: 0 for the one that directs.
        world: how many there are; 2 or more.
        variables: what the launcher put into the environment.
    """

    rank: int
    world: int
    variables: Mapping[str, str]

    def environment(self, engine: bool) -> dict[str, str]:
        """Return the variables under which a stage works with the other processes.

        Args:
            engine: include accelerate's own (FSDP, DeepSpeed, ...). Training needs them; anything else that loads a model must
                not see them, because transformers then loads the weights on the first process only.
        """
        shared = {k: v for k, v in self.variables.items() if engine or k in _NAMES}
        return {**shared, "TORCHELASTIC_USE_AGENT_STORE": "True"}  # the launcher serves the store, or else the first process

    def store(self, host: bool = False) -> Any:
        """Connect to the launch's key-value store (a ``torch.distributed.Store``).

        Args:
            host: serve it from this process, where the launcher does not serve one.
        """
        import torch.distributed

        library: Any = torch.distributed  # it does not declare its stores
        served = self.variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address, port = self.variables["MASTER_ADDR"], int(self.variables["MASTER_PORT"])
        store = library.TCPStore(
            address, port, None, host and not served, timedelta(seconds=ASSEMBLE_SECONDS), wait_for_workers=False
        )
        attempt = self.variables.get("TORCHELASTIC_RESTART_COUNT", "0")
        return library.PrefixStore(f"harness/{attempt}", store)


def find(environment: MutableMapping[str, str]) -> Membership | None:
    """Take the launcher's variables out of the environment; None without a launcher, or with one process.

    They are taken out because libraries that find them in a process that works alone would wait for the others.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    taken = {name: environment.pop(name) for name in list(environment) if name in _NAMES or name.startswith(_PREFIXES)}
    world = int(taken["WORLD_SIZE"])
    return Membership(int(taken["RANK"]), world, taken) if world > 1 else None


@contextmanager
def taking_part(membership: Membership | None, stage: Stage) -> Iterator[None]:
    """Let a stage that is computed together find the other processes; the block ends when it has ended on all of them.

    A stage that is not, and every stage without a launcher, finds nobody.
    """
    if membership is None or not stage.distributed:
        yield
        return
    from students.distributed import ranks

    variables = membership.environment(engine=stage.kind == "student")
    os.environ.update(variables)
    try:
        yield
        ranks().barrier()
    finally:
        for name in variables:
            os.environ.pop(name, None)


class Order(NamedTuple):
    """What the first process tells another: ``what`` is ``start``, ``stage`` or ``end``; ``value`` is what it is about."""

    what: str
    value: Any


class Lost(Exception):
    """A process of the launch is gone. ``rank`` says which."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"process {rank} is gone")
        self.rank = rank


class Leader:
    """The first process's end of the channel.

    Args:
        membership: of this process.
    """

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.peers: dict[int, Connection] = {}
        self._complete = threading.Event()
        host = membership.variables["MASTER_ADDR"]
        key = secrets.token_bytes(32)
        # a launch on one machine must not be reachable from others
        bound = "127.0.0.1" if socket.gethostbyname(host).startswith("127.") else ""
        self._listener = Listener((bound, 0), family="AF_INET", backlog=membership.world, authkey=key)
        self._store = membership.store(host=True)  # kept: where this process serves it, it lives as long as the object
        port = self._listener.address[1]
        self._store.set("control", f"{host}\n{port}\n{key.hex()}")
        threading.Thread(target=self._admit, name="admit-ranks", daemon=True).start()

    def _admit(self) -> None:
        while len(self.peers) < self.membership.world - 1:
            try:
                connection = self._listener.accept()
                rank = connection.recv()
            except (AuthenticationError, EOFError, ConnectionError):  # a stranger, or a process that died as it started
                continue
            except OSError:  # the listener was closed: the command is over
                return
            _keep_alive(connection)
            self.peers[rank] = connection
        self._complete.set()

    def assemble(self, seconds: float = ASSEMBLE_SECONDS) -> bool:
        """Wait until every other process is connected; False when ``seconds`` pass without."""
        return self._complete.wait(seconds)

    def send(self, order: Order) -> None:
        """Tell every other process something.

        Raises:
            Lost: when one of them is gone.
        """
        for rank, connection in self.peers.items():
            try:
                connection.send(order)
            except OSError as error:
                raise Lost(rank) from error

    def farewell(self, code: int) -> None:
        """Tell the others that the command is over, with its exit code, and close the channel."""
        self.assemble(FAREWELL_SECONDS)
        for connection in self.peers.values():
            try:
                connection.send(Order("end", code))
            except OSError:  # it is gone already, which is what the order asks for
                continue
        self._listener.close()


_leader: Leader | None = None


def leader() -> Leader | None:
    """Return this command's channel to the other processes of its launch; None without a launcher."""
    return _leader


def membership() -> Membership | None:
    """Return this command's place in its launch; None without a launcher."""
    return None if _leader is None else _leader.membership


@contextmanager
def led(membership: Membership) -> Iterator[Leader]:
    """Open the channel for the time of the block; :func:`leader` finds it."""
    global _leader
    _leader = Leader(membership)
    try:
        yield _leader
    finally:
        _leader = None


def connect(membership: Membership) -> Connection:
    """Return the connection of another process to the first one.

    Raises:
        OSError: when the first one is gone.
    """
    host, port, key = membership.store().get("control").decode().split("\n")
    connection = Client((host, int(port)), family="AF_INET", authkey=bytes.fromhex(key))
    connection.send(membership.rank)
    _keep_alive(connection)
    return connection


def _keep_alive(connection: Connection) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as twin:  # options belong to the socket, not to the descriptor
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # not every system lets a program choose
                twin.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
