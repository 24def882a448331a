"""Errors of what a robot's computer runs. The messages are lines for people, as those of `jaxvla.errors`."""


class ClientError(Exception):
    """Base class: something between a robot and its policy cannot go on."""


class CodecError(ClientError):
    """A message cannot be packed, or what came is no message that may be unpacked."""


class ServerError(ClientError):
    """The policy server says that it cannot do what it was asked for; the message is its own."""


class ConnectionLost(ClientError):
    """A policy server is not reached, or not there any more."""


class AccessError(ClientError):
    """A policy server does not admit this client, or cannot show who it is."""


class TooLate(ClientError):
    """An answer did not come in time."""
