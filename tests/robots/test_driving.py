"""Policies as episodes see them: of this process, and of a policy server."""

import dataclasses

import numpy as np
import pytest
from robots.simulation import CONTRACT
from serving_clients.openpi_server import JAXVLA, METADATA, OpenpiServer

from jaxvla.errors import ConfigError, RobotError
from jaxvla.robots.addresses import host_and_port
from jaxvla.robots.driving import Driver, PolicyDriver, Server, ServerDriver, check_driver
from jaxvla_client.client import Client

OBSERVATION = {"images0": np.zeros((4, 4, 3), np.uint8), "proprio": np.zeros(7, np.float32)}


@dataclasses.dataclass
class Contract:
    def to_json(self):
        return CONTRACT


class Counting:
    """Chunks of two actions that say how many decisions there were."""

    needed, contract = {"observation": ("images0",), "goals": ()}, Contract()

    def __init__(self):
        self.calls, self.words = [], ""

    def act(self, observation, task):
        self.calls.append("act")
        self.words = f"decision {self.calls.count('act')}"
        return np.full((2, 7), self.calls.count("act"), np.float32)

    def observe(self, observation):
        self.calls.append("observe")

    def reset(self):
        self.calls.append("reset")


def test_a_policy_of_this_process_sees_every_step_and_decides_when_its_actions_are_played():
    policy = Counting()
    driver = PolicyDriver(policy)
    assert isinstance(driver, Driver)
    driver.begin({"language": "lift"})
    assert [driver.next(OBSERVATION)[0] for _ in range(3)] == [1, 1, 2]
    assert driver.said == "decision 2"
    driver.begin({"language": "drop"})  # what is left of the last decision is not played
    assert driver.next(OBSERVATION)[0] == 3
    assert policy.calls == ["reset", "act", "observe", "act", "reset", "act"]


def facts(**contract):
    return {
        "server": "jaxvla",
        "policies": {
            "a": {"contract": CONTRACT | contract, "needed": ["images0", "proprio", "language", "goals/images0"]}
        },
    }


def test_a_policy_of_a_server_says_what_it_needs_and_its_errors_stop_the_robot():
    with OpenpiServer(facts()) as server, ServerDriver(Client(port=server.port)) as driver:
        assert isinstance(driver, Driver)
        assert driver.needed == {"observation": ("images0", "proprio"), "goals": ("images0",)}
        assert driver.contract == CONTRACT
        driver.begin({"goals": {"images0": OBSERVATION["images0"]}})
        assert driver.next(OBSERVATION | {"x": 1.0}).tolist() == [1, 0]
        assert driver.said == "at 1.0"
        assert server.requests[0]["goals"].keys() == {"images0"}
        driver.begin({"language": "lift"})
        with pytest.raises(RobotError, match="the policy server: KeyError: the observation lacks 'x'"):
            driver.next(OBSERVATION)


def test_a_server_of_others_cannot_drive_a_widowx():
    with (
        OpenpiServer(METADATA) as server,
        Client(port=server.port) as client,
        pytest.raises(RobotError, match="says nothing of its policy"),
    ):
        ServerDriver(client)


def test_a_server_is_reached_with_its_token_and_nowhere_else(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    with OpenpiServer(JAXVLA, token="secret") as server:
        Server(f"127.0.0.1:{server.port}", str(token)).connect().close()
        with pytest.raises(RobotError, match=r"the policy server: .* answers 401"):
            Server(f"127.0.0.1:{server.port}").connect()
    with pytest.raises(ConfigError, match=r"none cannot be read"):
        Server("127.0.0.1:1", str(tmp_path / "none")).connect()
    with pytest.raises(ConfigError, match=r"token cannot be read"):
        Server("127.0.0.1:1", certificate=str(token)).connect()


@pytest.mark.parametrize("text", ["localhost", "localhost:", ":1", "localhost:0", "localhost:65536", "localhost:1:"])
def test_an_address_is_host_and_port(text):
    assert host_and_port("[::1]:8000", "--server") == ("::1", 8000)
    with pytest.raises(ConfigError, match="--server must be HOST:PORT"):
        host_and_port(text, "--server")


@pytest.mark.parametrize(
    ("needed", "contract", "message"),
    [
        (("images0",), {"action_dim": 14}, "action has 14 numbers, a WidowX's 7"),
        (("images0", "proprio"), {"proprio_dim": 8}, "proprio has 8 numbers, a WidowX's 7"),
        (("images0", "wrist"), {}, "looks at images0, wrist, and --cameras names images0: add wrist=TOPIC"),
    ],
)
def test_a_policy_that_cannot_drive_a_widowx_is_refused(needed, contract, message):
    driver = PolicyDriver(Counting())
    check_driver(driver, ("images0",))
    driver.needed, driver.contract = {"observation": needed, "goals": ()}, CONTRACT | contract
    with pytest.raises(ConfigError, match=message):
        check_driver(driver, ("images0",))
    driver.needed = {"observation": ("images0",), "goals": ()}
    check_driver(PolicyDriver(Counting()), ("images0", "more"))
