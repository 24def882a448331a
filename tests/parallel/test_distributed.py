import pytest

from jaxvla.errors import ConfigError
from jaxvla.parallel.distributed import initialize, together


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1", 2, None), "go together"),
        (("", 2, 0), "go together"),
        (("127.0.0.1:1", 2, 2), "process_id must be 0 to 1, not 2"),
        (("127.0.0.1:1", 2, 1, 0), "heartbeat_seconds must be at least 1, not 0"),
        (("127.0.0.1:1", 2, 1, 10, 1), "process 0 does not answer at 127.0.0.1:1 since 1 s: see its output"),
        (("somewhere", 2, 1), "coordinator must be HOST:PORT of process 0, or auto, not 'somewhere'"),
    ],
)
def test_starts_that_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        initialize(*arguments)


def test_errors_of_a_job_of_one_process_pass_through():
    with pytest.raises(ConfigError, match="own"), together():
        raise ConfigError("own")
