"""Names that a user gives, of what there is only so much."""

import difflib
from collections.abc import Collection

from jaxvla.errors import ConfigError


def check_name(what: str, name: str, known: Collection[str], where: str = "") -> None:
    """Raises ConfigError, with the nearest name that there is, where `name` is none of `known`.

    Args:
        what: it should be.
        name: that was given.
        known: those that there are.
        where: said after it, such as " on level full".
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"no {what} named {name!r}{where}{hint} there are: {', '.join(known)}")
