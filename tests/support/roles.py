"""Roles as the script makes them, in a database whose owner is no superuser."""

from __future__ import annotations

import contextlib
import uuid

from collections.abc import Generator, Sequence

import attrs
import psycopg

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from nursery_queue._pg import _migrator as _migrate


KINDS = ("producer", "reader", "worker", "owner")


@attrs.frozen
class Roles:
    """A migrated database, and DSNs of roles that may log in."""

    schema: str
    prefix: str
    admin: str  # may create roles, and has migrated
    login: dict[str, str]  # DSN by kind; `nobody` was granted nothing

    def again(self) -> None:
        """Run the script once more, as after an upgrade."""
        run(self.admin, _migrate.roles(self.schema, self.prefix))


def run(dsn: str, script: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(script.encode())


@contextlib.contextmanager
def made_roles(dsn: str, schema: str) -> Generator[Roles]:
    """Migrate an empty database as an ordinary role, run the script, and make one login a kind."""
    unique = uuid.uuid4().hex[:8]
    prefix = f"r{unique}_"
    logins = [f"l{unique}_{kind}" for kind in (*KINDS, "nobody")]
    admin = f"l{unique}_admin"
    database = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
    made: Sequence[str] = [admin, *logins, *(prefix + kind for kind in KINDS)]
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(sql.SQL("create role {} login createrole").format(sql.Identifier(admin)))
        grant = "grant create on database {} to {} with grant option"
        session.execute(sql.SQL(grant).format(database, sql.Identifier(admin)))
        for name in logins:
            session.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
    try:
        as_admin = make_conninfo(dsn, user=admin)
        _migrate.up_sync(as_admin, schema)
        roles = Roles(
            schema=schema,
            prefix=prefix,
            admin=as_admin,
            login={name.rpartition("_")[2]: make_conninfo(dsn, user=name) for name in logins},
        )
        roles.again()
        with psycopg.connect(as_admin, autocommit=True) as session:
            for kind in KINDS:
                names = sql.Identifier(prefix + kind), sql.Identifier(f"l{unique}_{kind}")
                session.execute(sql.SQL("grant {} to {}").format(*names))
        yield roles
    finally:
        with psycopg.connect(dsn, autocommit=True) as session:
            # A test that has failed may hold a session, and with it what is to be dropped.
            end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = any(%s)"
            session.execute(end, [list(made)])
            for name in made:
                role = sql.Identifier(name)
                found = session.execute("select from pg_roles where rolname = %s", [name])
                if found.fetchone() is not None:
                    session.execute(sql.SQL("drop owned by {} cascade").format(role))
            for name in made:
                session.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))
