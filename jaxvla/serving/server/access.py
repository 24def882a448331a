"""Who may connect: addresses, tokens, encryption."""

import base64
import binascii
import dataclasses
import hmac
import ipaddress
import pathlib
import ssl

from jaxvla.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may connect, and to where.

    Attributes:
        host: the address to listen at.
        token: that clients must give; empty for none.
        anonymous: addresses beside this machine's own need no token.
        certificate, key: PEM files, for TLS; empty for none.

    Raises:
        ConfigError: the address is not this machine's alone, and nobody said who may connect; or half of a pair is
            missing.
    """

    host: str = "127.0.0.1"
    token: str = dataclasses.field(default="", repr=False)
    anonymous: bool = False
    certificate: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if not (self.token or self.anonymous or is_loopback(self.host)):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines: give a --token that clients must know, or "
                "--allow_anonymous"
            )
        if bool(self.certificate) != bool(self.key):
            raise ConfigError("give both --tls_certificate and --tls_key, or neither")

    def admits(self, header: str | None) -> bool:
        """Whether an Authorization header has the token; the time that it takes does not say how much of it is right.

        The token stands behind "Bearer" or "Api-Key"; or it is the password of "Basic", as in ws://user:token@host.
        """
        if not self.token:
            return True
        kind, _, given = (header or "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        elif kind.lower() not in ("bearer", "api-key"):
            given = ""
        return hmac.compare_digest(given.strip().encode(), self.token.encode())

    def tls(self) -> ssl.SSLContext | None:
        """For the listening socket; None for none.

        Raises:
            ConfigError: a file is missing or no such thing.
        """
        if not self.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for path in (self.certificate, self.key):
            if not pathlib.Path(path).is_file():
                raise ConfigError(f"{path} is no file: --tls_certificate and --tls_key are PEM files")
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"{self.certificate} and {self.key} are no certificate and its key: {error}") from error
        return context


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
