"""The address of a live view: a Unix socket's path, or a host and a port."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Final

from loopaware_pool._platform.conninfo import hide_passwords

__all__ = ["Address", "HostPort", "SocketPath", "parse_address"]

_HOST_AND_PORT: Final = re.compile(r"(?:http://)?(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})/?", re.ASCII)
_EXPECTED: Final = "expected the path of a Unix socket, as /run/app/pool.sock, or host:port, as 127.0.0.1:8125"


@dataclass(frozen=True, slots=True)
class SocketPath:
    """
    A Unix socket.

    Attributes:
        path: Its path.
    """

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class HostPort:
    """
    A TCP port.

    Attributes:
        host: A name or a numeric address, without brackets.
        port: Its number; with 0 the system chooses one.
    """

    host: str
    port: int

    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. Of names, only `localhost` is known to be so."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


Address = SocketPath | HostPort


def parse_address(address: str | os.PathLike[str]) -> Address:
    """
    Parse an address.

    Args:
        address: A path, `host:port`, or `http://host:port`. A string without a colon is a path.

    Raises:
        TypeError: It is no string and no path.
        ValueError: It is neither. The message shows no password, in case it is a DSN.
    """
    text: object = os.fspath(address) if isinstance(address, os.PathLike) else address
    if not isinstance(text, str):
        raise TypeError(f"address={address!r}: {_EXPECTED}")
    if isinstance(address, str):
        found = _HOST_AND_PORT.fullmatch(address)
        if found is not None and int(found["port"]) <= 65535:
            return HostPort(found["host"].strip("[]"), int(found["port"]))
        if "://" in address or address.isdigit() or (":" in address and "/" not in address):
            raise ValueError(f"address={hide_passwords(address)!r}: {_EXPECTED}")
    if not text or "\0" in text:
        raise ValueError(f"address={text!r}: {_EXPECTED}")
    return SocketPath(text)
