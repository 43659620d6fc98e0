"""Keeps passwords out of sight in any text, such as logs and error messages."""

from __future__ import annotations

import re


HIDDEN = "***"

# Greedy up to the last "@" before a blank: a password with an "@" in it must not peep out.
_IN_URL = re.compile(r"(://[^\s:/@?]*):\S*@")
_IN_PARAMETERS = re.compile(r"([?&]\w*(?:password|secret)=)[^\s&]+", re.IGNORECASE)
_IN_KEYWORDS = re.compile(
    r"((?<![?&\w])\w*(?:password|secret)\s*=\s*)(?:'(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)+)",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Return *text* with the passwords of DSNs in it, URLs or keywords, replaced by `***`."""
    text = _IN_URL.sub(rf"\1:{HIDDEN}@", text)
    for pattern in (_IN_PARAMETERS, _IN_KEYWORDS):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def suspicious(dsn: str) -> str | None:
    """Say what is wrong with a URL, without repeating any of its password; None: nothing.

    libpq cuts such a URL in the wrong place, takes part of the password for a host, a port or
    a database, and says so in its error messages.
    """
    scheme, separator, rest = dsn.partition("://")
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        return None
    if scheme not in {"postgres", "postgresql"}:
        return f"it is for {scheme}"
    before_query, _, parameters = rest.partition("?")
    authority, _, path = before_query.partition("/")
    host = authority.rpartition("@")[2]
    ports = re.findall(r":([^:,\]]*)(?:,|$)", host)
    if (
        authority.count("@") > 1
        or "@" in path
        or any(port and not port.isdecimal() for port in ports)
        or any(word and "=" not in word for word in parameters.split("&"))
    ):
        return (
            "its host, port or parameters make no sense; in a password write "
            "@ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25"
        )
    return None
