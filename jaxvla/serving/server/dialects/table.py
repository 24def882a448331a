"""The protocols that the server speaks, and how it finds out which one a client speaks.

Each is a module of pure functions: `is_spoken`, `metadata`, `greeting`, `parse`, `reply`, `error`.

Clients of openpi and starVLA wait until the server has spoken; those of vla-eval speak first. Their handshakes are the
same to the last header. So the server waits for a moment; then it says what is the metadata of the first two and an
answer to the third one's hello at once. Whoever speaks afterwards is known by what he says.
"""

import types
from collections.abc import Mapping
from typing import Any

from jaxvla.serving.server.dialects import openpi, starvla, vla_eval
from jaxvla_client.codec import pack

# Any message can be one of openpi, so it comes last.
DIALECTS: Mapping[str, types.ModuleType] = {each.NAME: each for each in (vla_eval, starvla, openpi)}


def spoken(message: Mapping[Any, Any]) -> types.ModuleType:
    """The protocol that a message is of."""
    return next(dialect for dialect in DIALECTS.values() if dialect.is_spoken(message))


def greeting(facts: Mapping[str, Any]) -> bytes:
    """The first frame for a client of any protocol."""
    return pack({**starvla.metadata(facts), **vla_eval.metadata(facts)})
