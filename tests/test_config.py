import dataclasses

import pytest

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    pair: tuple[int, float] = (1, 2.0)
    flag: bool = False
    limit: int | None = None
    extra: dict[str, str] = dataclasses.field(default_factory=dict)


def test_nested_values_arrive():
    built = from_mapping(Outer, {"name": "x", "inner": {"rate": 1, "sizes": [3, 4]}, "extra": {"a": "b"}, "limit": 3})
    assert built == Outer("x", Inner(1.0, (3, 4)), limit=3, extra={"a": "b"})
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "flg": True}, r"unknown key config\.flg: did you mean flag\? known are extra, flag"),
        ({"name": "x", "inner": {"rte": 1}}, r"config\.inner\.rte: did you mean rate"),
        ({}, r"config\.name is missing"),
        ({"name": 3}, r"config\.name must be str, not int 3"),
        ({"name": "x", "flag": 1}, r"config\.flag must be bool"),
        ({"name": "x", "limit": True}, r"config\.limit must be int"),
        ({"name": "x", "pair": (1, 2, 3)}, r"config\.pair needs 2 values, not 3"),
        ({"name": "x", "inner": {"sizes": (1, "2")}}, r"config\.inner\.sizes\[1\] must be int"),
        ({"name": "x", "inner": 3}, r"config\.inner must be Inner"),
        ({"name": "x", "extra": {"a": 3}}, r"config\.extra\.a must be str, not int 3"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, values)
