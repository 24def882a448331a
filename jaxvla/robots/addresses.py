"""Addresses of services, as flags say them."""

from jaxvla.errors import ConfigError


def host_and_port(text: str, flag: str) -> tuple[str, int]:
    """The parts of HOST:PORT.

    Raises:
        ConfigError: it is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{flag} must be HOST:PORT, such as 192.168.0.7:8000, not {text!r}")
    return host.strip("[]"), int(port)
