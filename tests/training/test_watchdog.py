import math
import time

import pytest

from jaxvla.errors import ConfigError
from jaxvla.training import watchdog
from jaxvla.training.config import WatchdogConfig
from jaxvla.training.watchdog import Watchdog


def steps(dog, count=8, seconds=0.01):
    for step in range(1, count + 1):
        time.sleep(seconds)
        dog.beat(step)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_step_that_hangs_is_said_once_with_the_stacks(capfd):
    with Watchdog(WatchdogConfig(factor=3.0, at_least_s=0.2)) as dog:
        steps(dog)
        time.sleep(1.5)
    text = capfd.readouterr().err
    assert text.count("WARNING: process 0: step 9 has taken") == 1
    assert "its threads:" in text
    assert "test_a_step_that_hangs_is_said_once_with_the_stacks" in text
    assert "_watch" in text


def test_it_ends_the_process_where_it_is_told_to(monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog, "end_job", ended.append)
    with Watchdog(WatchdogConfig(factor=3.0, at_least_s=0.1, end=True)) as dog:
        steps(dog)
        assert wait_until(lambda: ended)
    assert len(ended) == 1
    assert "resume from the last checkpoint" in ended[0]


def test_what_is_no_step_is_not_watched(capfd):
    with Watchdog(WatchdogConfig(factor=3.0, at_least_s=0.1)) as dog:
        with dog.paused():  # a compilation, before there was a step
            time.sleep(0.4)
        steps(dog)
        with dog.paused():
            time.sleep(0.4)
        dog.beat(9)
    assert "WARNING" not in capfd.readouterr().err


def test_the_limit():
    dog = Watchdog(WatchdogConfig(factor=20.0, at_least_s=0.001))
    assert dog.limit() == math.inf
    steps(dog, 8, 0.01)
    assert 0.2 <= dog.limit() < 60
    assert Watchdog(WatchdogConfig(factor=0.0)).limit() == math.inf


@pytest.mark.parametrize(("name", "value"), [("factor", 0.5), ("factor", math.nan), ("at_least_s", 0.0)])
def test_settings_that_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"config\.watchdog\.{name} must be"):
        WatchdogConfig(**{name: value})
