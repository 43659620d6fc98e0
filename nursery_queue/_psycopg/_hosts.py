"""The addresses that a DSN leads to: in which order to try them, and for how long."""

from __future__ import annotations

import ipaddress
import math
import os
import random

from collections.abc import Callable, Sequence

import attrs
import psycopg
import trio

from psycopg.abc import ConnDict
from psycopg.conninfo import conninfo_attempts, timeout_from_conninfo
from psycopg.pq.abc import PGconn

from nursery_queue._trio._rng import new_rng


CONNECT_TIMEOUT = 5.0  # seconds for each address, unless `connect_timeout` says otherwise
AVOIDED_FOR = 60.0  # seconds; an address that has failed is tried after all others

Address = tuple[str, str]  # of a host, or the folder of a socket; and a port


def address_of(attempt: ConnDict) -> Address:
    """Return the address that an attempt to connect leads to."""
    host = attempt.get("hostaddr") or attempt.get("host") or ""
    return str(host), str(attempt.get("port") or os.environ.get("PGPORT") or "5432")


def peer_of(pgconn: PGconn) -> Address:
    """Return the address that an open connection leads to."""
    host = pgconn.hostaddr or pgconn.host
    return host.decode(), pgconn.port.decode()


@attrs.define(eq=False)
class Hosts:
    """The addresses of one DSN: which has answered last, and which have failed.

    *on_move* is called with an address that has fallen silent, once another address has answered
    that has to be the primary: the connections to the silent one are worthless, though no error
    has told so (tests/faults/test_failover.py).
    """

    on_move: Callable[[Address], object] | None = None
    _last: Address | None = attrs.field(default=None, init=False)
    _avoided: dict[Address, float] = attrs.field(factory=dict[Address, float], init=False)
    _silent: set[Address] = attrs.field(factory=set[Address], init=False)
    _rng: random.Random = attrs.field(factory=new_rng, init=False)

    def in_order(self, attempts: Sequence[ConnDict], *, shuffled: bool) -> list[ConnDict]:
        """Return attempts in the order in which to make them.

        The address that has answered last comes first, unless connections are to be spread;
        addresses that have failed within the last minute come last.
        """
        now, order = trio.current_time(), list(attempts)
        if shuffled:
            self._rng.shuffle(order)

        def rank(attempt: ConnDict) -> int:
            address = address_of(attempt)
            if self._avoided.get(address, -math.inf) > now - AVOIDED_FOR:
                return 2
            return 0 if address == self._last and not shuffled else 1

        return sorted(order, key=rank)

    def failed(self, address: Address, *, silent: bool = False) -> None:
        """Note that an address does not answer, or not as wanted; *silent*: it says nothing."""
        self._avoided[address] = trio.current_time()
        if silent:
            self._silent.add(address)
        if self._last == address:
            self._last = None  # else the next connection would wait for it once more

    def answered(self, address: Address, *, primary: bool) -> None:
        """Note that an address has answered, and whether it has to be the primary."""
        self._last = address
        self._avoided.pop(address, None)
        self._silent.discard(address)
        if primary:
            silent, self._silent = self._silent, set()
            for each in silent:
                if self.on_move is not None:
                    self.on_move(each)


def param(params: ConnDict, name: str) -> str:
    """Return a parameter; one that the DSN leaves out comes from the environment."""
    value = params.get(name)
    if value is None:
        value = os.environ.get(_VARIABLES[name], "")
    return str(value)


_VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
}


def names_several(params: ConnDict) -> bool:
    """Tell whether a DSN names more than one host."""
    return "," in param(params, "host") or "," in param(params, "hostaddr")


def patience(params: ConnDict) -> float:
    """Return how many seconds each address has to answer."""
    if params.get("service") or os.environ.get("PGSERVICE") or param(params, "connect_timeout"):
        return timeout_from_conninfo(params)
    return CONNECT_TIMEOUT


def share(limit: float, left_to_try: int) -> float:
    """Return the seconds for the next address, so that all are tried before the call is over.

    The caller may have less time than all of them together: a heartbeat has a third of the
    lease. The last share is for the statement that the connection is wanted for.
    """
    left = trio.current_effective_deadline() - trio.current_time()
    return min(limit, max(0.0, left) / (left_to_try + 1))


async def attempts(params: ConnDict, limit: float) -> tuple[list[ConnDict], list[psycopg.Error]]:
    """List the attempts to make, one address each, and the names that could not be looked up.

    Each name has a share of the time, so one that no name server answers for does not keep us
    from the others.
    """
    wanted = param(params, "target_session_attrs")
    # psycopg yields each address once; libpq tries all of them twice: for a standby, then for any.
    if wanted == "prefer-standby":
        params = {**params, "target_session_attrs": "any"}
    found: list[ConnDict] = []
    failures: list[psycopg.Error] = []
    hosts = _split(params)
    for number, host in enumerate(hosts):
        seconds = share(limit, 2 * len(hosts) - number) if len(hosts) > 1 else math.inf
        try:
            found += await _look_up(host, seconds)
        except psycopg.Error as exc:
            failures.append(exc)
    if wanted == "prefer-standby":
        found = [{**each, "target_session_attrs": "standby"} for each in found] + found
    return found, failures


async def _look_up(host: ConnDict, seconds: float) -> list[ConnDict]:
    """Return the addresses of one host; a name is looked up in a thread."""
    if not _is_name(host):
        return conninfo_attempts(host)
    with trio.move_on_after(seconds):
        # getaddrinfo blocks, for as long as the resolver likes, and cannot be stopped.
        return await trio.to_thread.run_sync(conninfo_attempts, host, abandon_on_cancel=True)
    msg = f"the name {param(host, 'host')!r} was not looked up within {seconds:.3g} s"
    raise psycopg.OperationalError(msg)


def _split(params: ConnDict) -> list[ConnDict]:
    """Return the parameters of each host, as libpq pairs them with addresses and ports."""
    given = {name: param(params, name) for name in ("host", "hostaddr", "port")}
    lists = {name: value.split(",") for name, value in given.items() if value}
    count = max(len(lists.get("host", ())), len(lists.get("hostaddr", ())))
    if count <= 1:
        return [params]
    ports = lists.get("port")
    if ports is not None and len(ports) == 1:
        lists["port"] = ports * count
    if any(len(each) != count for each in lists.values()):
        return [params]  # psycopg says what is wrong with it
    return [
        {**params, **{name: values[number] for name, values in lists.items()}}
        for number in range(count)
    ]


def _is_name(host: ConnDict) -> bool:
    name = param(host, "host")
    if param(host, "hostaddr") or not name or name[0] in "/@":
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False
