"""Chunks of a server played one action at a time: waiting for each decision, or while the next one is made."""

import time

import pytest
from serving_clients.openpi_server import JAXVLA, METADATA, OpenpiServer

from jaxvla_client.chunks import Plan
from jaxvla_client.client import Client
from jaxvla_client.errors import ClientError, ServerError
from jaxvla_client.playing import Playing

LOOKS_BACK = {
    "server": "jaxvla",
    "policies": {"echo": {"contract": {"execute_steps": 2, "obs_horizon": 2}, "needed": ["x"]}},
}


def options(server):
    return [request.get("jaxvla", {}) for request in server.requests]


def test_a_chunk_is_played_before_the_next_decision():
    with OpenpiServer(JAXVLA, chunk=4) as server, Client(port=server.port) as client, Playing(client) as playing:
        playing.begin({"language": "lift"})
        played = [playing.next({"x": float(x)}).tolist() for x in range(5)]
        assert played == [[0, 0], [0, 1], [2, 0], [2, 1], [4, 0]]  # execute_steps of the contract
        assert playing.said == "at 4.0"
        assert [request["x"] for request in server.requests] == [0, 2, 4]
        assert {request["language"] for request in server.requests} == {"lift"}
        assert ["reset" in each for each in options(server)] == [True, False, False]
        playing.begin({"language": "drop"})
        assert playing.next({"x": 9.0}).tolist() == [9, 0]
        assert options(server)[-1]["reset"] is True
        assert server.requests[-1]["language"] == "drop"


def test_servers_of_others_have_their_chunks_played_whole_or_as_it_is_said():
    with OpenpiServer(METADATA, chunk=3) as server, Client(port=server.port) as client:
        for plan, expected in ((None, [0, 0, 0, 3]), (Plan(steps=1), [0, 1, 2, 3])):
            playing = Playing(client, plan)
            playing.begin({})
            assert [playing.next({"x": float(x)})[0] for x in range(4)] == expected


def test_a_policy_that_looks_back_sees_every_step():
    with OpenpiServer(LOOKS_BACK) as server, Client(port=server.port) as client:
        playing = Playing(client)
        playing.begin({})
        for x in range(4):
            playing.next({"x": float(x)})
        assert [request["x"] for request in server.requests] == [0, 1, 2, 3]
        assert ["observe" in each for each in options(server)] == [False, True, False, True]
        with pytest.raises(ClientError, match="looks back at 2 steps"):
            Playing(client, asynchronous=True)


def test_the_robot_goes_on_while_the_next_decision_is_made():
    with (
        OpenpiServer(JAXVLA, chunk=8) as server,
        Client(port=server.port) as client,
        Playing(client, Plan(steps=4), asynchronous=True) as playing,
    ):
        server.delay, played, took = 0.1, [], []
        playing.begin({})
        for x in range(24):
            start = time.monotonic()
            action = playing.next({"x": float(x)})
            took.append(time.monotonic() - start)
            played.append(None if action is None else action.tolist())
            time.sleep(0.05)
        first = next(i for i, action in enumerate(played) if action is not None)
        assert 2 <= first <= 8  # it stands still until the first decision is there
        assert None not in played[first:]
        assert max(took) < server.delay  # nothing waits for the server
        assert options(server)[0]["timing"] == {"played": None, "delay": 0}
        assert all(each["timing"]["delay"] > 0 for each in options(server)[2:])  # it learns how long a decision takes
        begun = list(dict.fromkeys(x for x, _ in played[first:]))
        assert len(begun) >= 3
        for x in begun[1:]:  # the actions whose moments have passed are left out
            assert min(step for own, step in played[first:] if own == x) > 0


def first_of(playing, observation):
    """The first action that is there within a few seconds."""
    for _ in range(200):
        action = playing.next(observation)
        if action is not None:
            return action
        time.sleep(0.02)
    raise AssertionError("nothing came")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_is_raised_once_and_the_next_step_asks_again(asynchronous):
    with (
        OpenpiServer(JAXVLA) as server,
        Client(port=server.port) as client,
        Playing(client, asynchronous=asynchronous) as playing,
    ):
        playing.begin({})
        with pytest.raises(ServerError, match="lacks 'x'"):
            first_of(playing, {"y": 1.0})
        assert first_of(playing, {"x": 1.0}).tolist() == [1, 0]
        assert all(each["reset"] for each in options(server))


def test_actions_that_are_none_are_an_error():
    with OpenpiServer(JAXVLA, chunk=0) as server, Client(port=server.port) as client:
        playing = Playing(client)
        playing.begin({})
        with pytest.raises(ClientError, match=r"actions are float32\[0\]; expected an array \[a, d\]"):
            playing.next({"x": 1.0})


def test_a_contract_that_makes_no_sense_is_an_error():
    bad = {"server": "jaxvla", "policies": {"echo": {"contract": {"execute_steps": -1}, "needed": []}}}
    with (
        OpenpiServer(bad) as server,
        Client(port=server.port) as client,
        pytest.raises(ClientError, match="steps must be 0 or a whole number above it, not -1"),
    ):
        Playing(client)
