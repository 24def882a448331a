"""Errors of what a robot's computer runs. The messages are lines for people, as those of `jaxvla.errors`."""


class ClientError(Exception):
    """Base class: something between a robot and its policy cannot go on."""


class CodecError(ClientError):
    """A message cannot be packed, or what came is no message that may be unpacked."""
