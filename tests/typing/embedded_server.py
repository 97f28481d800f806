"""What a type checker sees of the throw-away server."""

from pathlib import Path
from typing import assert_type

from loopaware_pool.testing.embedded_server import EmbeddedServer, TlsFiles

with EmbeddedServer(settings={"max_connections": 50}, bindir=Path("bin")) as server:
    assert_type(server, EmbeddedServer)
    assert_type(server.dsn, str)
    assert_type(server.version, str)
    assert_type(server.pid, int)

tls = TlsFiles(certificate=Path("server.crt"), key=Path("server.key"))
assert_type(EmbeddedServer(tls=tls).start(), EmbeddedServer)
