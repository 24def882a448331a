"""Clients of all protocols at one port: what they are answered, and what they are refused."""

import asyncio
import contextlib
import urllib.error
import urllib.request

import numpy as np
import pytest
from serving.server.hosts import client, make_hosted, make_policy, seen, serving, shown, stored_at
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from jaxvla.errors import ConfigError
from jaxvla.serving.server import connection
from jaxvla.serving.server.access import Access
from jaxvla.serving.server.dialects.wire import VLA_EVAL
from jaxvla.serving.server.server import Limits, bind
from jaxvla_client.codec import pack, unpack


def get(address, path, **headers):
    request = urllib.request.Request(address.replace("ws", "http", 1) + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_openpi_is_answered_what_the_policy_decides():
    async def scenario():
        policy = make_policy(robots=1)
        async with serving(make_hosted()) as address, client(address) as (ask, metadata, _):
            own = metadata["policies"]["echo"]
            assert own["needed"] == ["images0", "proprio", "goals/images0"]
            assert own["contract"]["action_horizon"] == 2
            for i in range(3):
                answer = await ask(shown(10 * i, goal=i))
                observation = shown(10 * i, goal=i)
                expected = policy.act(observation, {"goals": observation["goals"]})
                np.testing.assert_array_equal(answer["actions"], expected)
                assert seen(answer["actions"]) == [10 * i, 10 * i, i]
                assert answer["policy_timing"]["infer_ms"] > 0
                assert ("prev_total_ms" in answer["server_timing"]) == (i > 0)

    asyncio.run(scenario())


def test_an_error_is_text_for_people_and_the_connection_goes_on():
    async def scenario():
        async with serving(make_hosted()) as address, client(address) as (ask, _, _socket):
            for message, expected in (
                ({"images": 1}, "what came holds 'images', which are the keys of no client that is known (jaxvla, "),
                ({"images0": shown(1)["images0"]}, "lacks 'proprio'; what came holds 'images0', and needed are"),
                (
                    {**shown(1), "images0": np.zeros((8, 8, 3))},
                    "'images0' is float64[8, 8, 3]; expected an image, uint8",
                ),
                ({**shown(1), "images0": np.zeros((3, 8, 8), np.uint8)}, "'images0' is uint8[3, 8, 8]; expected"),
                ({**shown(1), "images0": [[0]]}, "'images0' is a list; expected an image"),
                (b"\xc1", "the message holds an extension or unused type"),
                (pack([1]), "a message must be a map, not list"),
                ("text", "a message must be a binary frame of msgpack, not text"),
            ):
                error = await ask(message)
                assert expected in error
                assert "Traceback" not in error
            assert seen((await ask(shown(7)))["actions"])[1] == 7

    asyncio.run(scenario())


def test_what_fails_inside_is_not_told(caplog):
    async def scenario():
        hosted = make_hosted(policy=make_policy(obs_horizon=3))
        async with serving(hosted) as address, client(address) as (one, *_), client(address) as (two, *_):
            await asyncio.gather(one(shown(1)), two(shown(2)))
            params, hosted.policy.params = hosted.policy.params, {}
            told = await asyncio.gather(one(shown(3)), two(shown(4)))
            hosted.policy.params = params
            return told, [seen((await ask(shown(5)))["actions"])[0] for ask in (one, two)]

    told, oldest = asyncio.run(scenario())
    assert told == ["the server failed to decide; its log says more"] * 2
    assert oldest == [1, 2], "what failed was seen, and once"
    assert "a decision of echo failed" in caplog.text


def test_images_that_would_be_enlarged_are_no_silent_failure():
    async def scenario(hosted, size):
        async with serving(hosted) as address, client(address) as (ask, _, _socket):
            return await ask(shown(3, size=size))

    policy = make_policy(**stored_at((16, 16)))
    for size in ((8, 8), (17, 15)):
        error = asyncio.run(scenario(make_hosted(policy=policy), size))
        assert f"'images0' is of {size[0]} x {size[1]} pixels, but the policy was trained on frames of 16 x 16" in error
        answer = asyncio.run(scenario(make_hosted(policy=policy, any_image_size=True), size))
        assert seen(answer["actions"])[1] == 3
    for size in ((16, 16), (16, 24), (48, 48)):
        assert seen(asyncio.run(scenario(make_hosted(policy=policy), size))["actions"])[1] == 3


def test_vla_eval_gets_one_action_for_each_observation():
    async def scenario(silent):
        async with serving(make_hosted(policy=make_policy(obs_horizon=2))) as address, connect(address) as socket:

            async def send(kind, payload, seq):
                frame = {"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0}
                await socket.send(pack(frame, VLA_EVAL))

            async def receive():
                return unpack(await asyncio.wait_for(socket.recv(), 10), form=VLA_EVAL)

            if silent:
                await asyncio.sleep(0.3)
            await send("hello", {"harness_version": "0.8.0", "protocol_version": 1}, 1)
            hello = await receive()
            assert (hello["type"], hello["payload"]["protocol_version"]) == ("hello", 1)
            assert hello["payload"]["action_spec"]["gripper"]["format"] == "continuous_01"
            actions = []
            for seq in range(2, 10):
                if seq in (2, 6):
                    await send("episode_start", {"task": {"name": "x"}}, 100)
                own = {"images": {"any": shown(seq)["images0"]}, "state": np.zeros(4)}
                await send("observation", {**own, "goals": shown(0)["goals"]}, seq)
                action = await receive()
                assert (action["type"], action["seq"], action["payload"]["actions"].shape) == ("action", seq, (2,))
                actions.append(action["payload"]["actions"])
            await send("observation", {"images": {}}, 77)
            error = await receive()
            assert (error["type"], error["seq"]) == ("error", 77)
            assert error["payload"]["error"].startswith("the observation lacks 'images/any'; what came holds ")
            await send("observation", {"jaxvla": {"speed": 2}}, 78)
            error = await receive()
            assert (error["type"], error["seq"]) == ("error", 78)
            return [seen(np.stack(actions[i : i + 2])) for i in range(0, 8, 2)]

    # The second decision of an episode looks back to the step that played the first one's last action.
    expected = [[2, 2, 0], [3, 4, 0], [6, 6, 0], [7, 8, 0]]
    assert asyncio.run(scenario(silent=False)) == expected
    assert asyncio.run(scenario(silent=True)) == expected


def test_starvla_decides_for_batches():
    async def scenario():
        hosted = make_hosted(policy=make_policy(obs_horizon=2))
        async with serving(hosted) as address, client(address) as (ask, metadata, _):
            assert metadata["action_chunk_size"] == 2
            assert metadata["available_unnorm_keys"] == ["set"]
            pong = await ask({"type": "ping", "request_id": "a"})
            assert pong == {"status": "ok", "ok": True, "type": "ping", "request_id": "a"}

            def example(value):
                own = {"image": [shown(value)["images0"]], "lang": "go", "state": np.zeros((1, 4))}
                return {**own, "goals": shown(0)["goals"]}

            examples = [example(value) for value in (5, 6, 7)]
            answer = await ask({"type": "infer", "request_id": "b", "payload": {"examples": examples}})
            assert (answer["ok"], answer["type"], answer["request_id"]) == (True, "inference_result", "b")
            assert [seen(actions)[1] for actions in answer["data"]["actions"]] == [5, 6, 7]
            assert (await ask({"type": "reset", "request_id": "d"}))["ok"]
            for values, oldest in (((15,), [15]), ((25, 26, 27), [15, 26, 27])):
                answer = await ask({"payload": {"examples": [example(value) for value in values]}})
                assert [seen(actions)[0] for actions in answer["data"]["actions"]] == oldest
            unknown = await ask({"type": "infer", "request_id": "c", "payload": {"examples": 3}})
            assert (unknown["ok"], unknown["request_id"]) == (False, "c")
            lara = {"batch_images": [[shown(9)["images0"]]], "instructions": ["go"]}
            refused = await ask({"request_id": 3, "payload": lara})
            assert (refused["status"], refused["request_id"]) == ("error", 3)
            assert "lacks 'state'" in refused["error"]["message"]
            flat = await ask({"examples": examples[:1], "unnorm_key": "other"})
            assert "echo acts in the units of set, not of 'other'" in flat["error"]["message"]

    asyncio.run(scenario())


def test_robots_decide_together_and_apart():
    async def scenario():
        hosted = make_hosted(policy=make_policy(robots=4, obs_horizon=2))
        async with serving(hosted) as address:
            async with client(address) as (one, *_), client(address) as (two, *_), client(address) as (three, *_):
                clients = one, two, three
                for step in range(5):
                    asked = [ask(shown(50 * i + step)) for i, ask in enumerate(clients)]
                    if step == 3:
                        asked[1].close()
                        asked[1] = two({**shown(1), "images0": 1})
                    answers = await asyncio.gather(*asked)
                    if step == 3:
                        assert "expected an image" in answers[1]
                        continue
                    before = [max(50 * i, 50 * i + step - 1 - (step == 4 and i == 1)) for i in range(3)]
                    assert [seen(answer["actions"])[0] for answer in answers] == before
                together = get_metrics(await asyncio.to_thread(get, address, "/metrics"))
                assert together['jaxvla_batch_robots_bucket{policy="echo",le="1"}'] < 5
                assert together["jaxvla_connections"] == 3
                assert together['jaxvla_requests_total{outcome="refused",dialect="openpi"}'] == 1
                # One robot is free, and a client that asks for nothing takes none.
                async with client(address) as (four, *_), client(address) as (five, *_):
                    assert seen((await four(shown(1)))["actions"])[0] == 1
                    assert "drives 4 robots, of which 0 are free" in await five(shown(1))
            async with client(address) as (again, *_):
                for _ in range(50):  # a connection that closed may still be open at this side
                    answer = await again(shown(9))
                    if not isinstance(answer, str):
                        break
                assert seen(answer["actions"]) == [9, 9, 0], "nothing of the robot before is left"

    asyncio.run(scenario())


def get_metrics(answer):
    status, text = answer
    assert status == 200
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_options_of_a_request():
    async def scenario():
        hosted = make_hosted(policy=make_policy(obs_horizon=2))
        async with serving(hosted) as address, client(address) as (ask, _, _socket):
            await ask(shown(1))
            answer = await ask({**shown(2), "jaxvla": {"observe": True}})
            assert "actions" not in answer
            assert seen((await ask(shown(3)))["actions"])[:2] == [2, 3]
            reset = {"reset": True, "seed": 3, "deadline_ms": 1e4, "policy": "echo"}
            assert seen((await ask({**shown(4), "jaxvla": reset}))["actions"])[:2] == [4, 4]
            assert await ask({"jaxvla": {"reset": True}}) == {"reset": True}
            assert seen((await ask(shown(5)))["actions"])[:2] == [5, 5]
            late = await ask({**shown(6), "jaxvla": {"deadline_ms": 1e-6}})
            assert late.startswith("late: the request waited ")
            assert seen((await ask(shown(7)))["actions"])[:2] == [5, 7], "what was dropped was not seen"
            for options, expected in (
                (
                    {"contract": {"control_frequency": 5, "actions": {"closed": 1.0}}},
                    "actions/closed is 0.0, the client",
                ),
                ({"contract": {"cameras": {"images1": {}}}}, "its contract has no 'cameras/images1', but images0"),
                ({"contract": {"action_dim": 7}}, "action_dim is 2, the client has 7"),
                ({"policy": "other"}, "there is no checkpoint 'other', of echo"),
                ({"seed": 3}, "jaxvla/seed must be 0 to"),
                ({"timing": {"delay": -1}}, "timing 0: delay must be a whole number, 0 or more, not -1"),
                ({"timing": {"delayed": 1}}, "jaxvla/timing must have played and delay, and nothing else"),
                ({"reset": 1}, "jaxvla/reset is 1, of another type"),
                ({"deadline_ms": float("nan")}, "jaxvla/deadline_ms must be"),
                ({"deadline": 1}, "'jaxvla' has no key 'deadline'; it has policy, reset"),
                (3, "'jaxvla' must be a map, not int"),
            ):
                assert expected in await ask({**shown(8), "jaxvla": options})
            same = {
                "timing": {"played": None, "delay": 0},
                "contract": {"action_dim": 2, "cameras": {"images0": {"policy_size": [8, 8]}}},
            }
            assert seen((await ask({**shown(8), "jaxvla": same}))["actions"])[:2] == [7, 8]

    asyncio.run(scenario())


def test_several_checkpoints_are_named():
    async def scenario():
        hosted = make_hosted("a"), make_hosted("b", gripper=(1.0, -1.0))
        async with serving(*hosted) as address:
            async with client(address) as (ask, metadata, _):
                assert metadata["policy"] is None
                assert "no checkpoint is named, of a, b: name one by the address" in await ask(shown(1))
                plain = (await ask({**shown(1), "jaxvla": {"policy": "a"}}))["actions"]
            async with client(f"{address}/b") as (ask, metadata, _):
                assert metadata["policy"] == "b"
                turned = (await ask(shown(1)))["actions"]
            np.testing.assert_allclose(turned[:, 1], 1 - 2 * plain[:, 1], rtol=1e-5)
            np.testing.assert_array_equal(turned[:, 0], plain[:, 0])
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{address}/c")
            assert refused.value.response.status_code == 404
            assert b"there are /a, /b, /healthz" in refused.value.response.body

    asyncio.run(scenario())


def test_who_may_connect():
    async def scenario():
        access = Access(token="secret")
        async with serving(make_hosted(), access=access, limits=Limits(connections=1)) as address:
            for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
                with pytest.raises(InvalidStatus) as refused:
                    await connect(address, additional_headers=headers)
                assert refused.value.response.status_code == 401
                assert b"the token is missing or wrong" in refused.value.response.body
            assert (await asyncio.to_thread(get, address, "/metrics"))[0] == 401
            assert await asyncio.to_thread(get, address, "/healthz") == (200, "OK\n")
            assert await asyncio.to_thread(get, address, "/health") == (200, '{"status": "ok"}\n')
            for url, headers in (
                (address, {"Authorization": "Api-Key secret"}),
                (address, {"Authorization": "Bearer secret"}),
                (address.replace("ws://", "ws://robot:secret@"), {}),
            ):
                async with client(url, additional_headers=headers) as (ask, *_):
                    assert seen((await ask(shown(1)))["actions"])[1] == 1
                    with pytest.raises(InvalidStatus) as refused:
                        await connect(address, additional_headers={"Authorization": "Bearer secret"})
                    assert refused.value.response.status_code == 503
                await asyncio.sleep(0.05)
            headers = {"Authorization": "Bearer secret", "Origin": "http://a.page"}
            with pytest.raises(InvalidStatus) as refused:
                await connect(address, additional_headers=headers)
            assert refused.value.response.status_code == 403

    asyncio.run(scenario())


def test_a_port_that_somebody_has():
    with bind("127.0.0.1", 0) as own:
        own.listen()
        with pytest.raises(ConfigError, match=r"port \d+ of 127.0.0.1 cannot be had, Address already in use: end what"):
            bind("127.0.0.1", own.getsockname()[1])
    with pytest.raises(ConfigError, match=r"port 80\d+ of no\.such\.host\.invalid cannot be had"):
        bind("no.such.host.invalid", 8001)


def test_limits_of_a_connection():
    async def scenario():
        limits = Limits(message_bytes=10_000, idle_s=0.4)
        async with serving(make_hosted(), limits=limits) as address:
            async with client(address) as (ask, _, socket):
                with pytest.raises(ConnectionClosed):
                    await ask(bytes(10_001))
                assert socket.close_code == 1009
            async with client(address) as (ask, _, socket):
                assert seen((await ask(shown(1)))["actions"])[1] == 1
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(socket.recv(), 5)
                assert (socket.close_code, socket.close_reason) == (1001, "the client was silent for too long")

    asyncio.run(scenario())


def test_a_client_that_does_not_take_its_answers_is_cut_off(monkeypatch):
    monkeypatch.setattr(connection, "_SEND_S", 0.2)

    async def scenario():
        async with serving(make_hosted(), limits=Limits(idle_s=8.0)) as address:
            wrong = pack({f"{i:070d}": 1 for i in range(30)})  # the error names all of them
            async with client(address) as (_, _, deaf):
                async with asyncio.timeout(30):
                    with contextlib.suppress(ConnectionClosed):
                        while True:
                            await deaf.send(wrong)
                assert deaf.close_code == 1006, "nobody said goodbye"
            async with client(address) as (ask, *_):
                assert seen((await ask(shown(2)))["actions"])[1] == 2

    asyncio.run(scenario())


def test_clients_that_misbehave_disturb_nobody():
    async def scenario():
        limits = Limits(handshake_s=0.5, message_bytes=20_000)
        async with serving(make_hosted(), limits=limits) as address:
            host, port = address.removeprefix("ws://").split(":")
            silent = await asyncio.open_connection(host, int(port))
            half, half_writer = await asyncio.open_connection(host, int(port))
            half_writer.write(b"GET / HTTP/1.1\r\nHost: ")
            async with client(address) as (_, _, torn), client(address) as (ask, *_):
                # The head of a frame of 15,000 bytes, masked, and some of them.
                torn.transport.write(b"\x82\xfe" + (15_000).to_bytes(2) + bytes(1000))
                for value in range(20):
                    assert seen((await asyncio.wait_for(ask(shown(value)), 2))["actions"])[1] == value
                torn.transport.abort()
            assert await asyncio.wait_for(silent[0].read(), 5) == b"", "closed"
            await asyncio.wait_for(half.read(), 5)
            for writer in (silent[1], half_writer):
                writer.close()

    asyncio.run(scenario())


def test_the_end_answers_what_is_in_flight():
    async def scenario():
        hosted = make_hosted(window_ms=400.0)
        context = serving(hosted)
        address = await context.__aenter__()
        async with client(address) as (ask, *_), client(address) as (other, _, idle):
            await asyncio.gather(ask(shown(1)), other(shown(1)))
            # It waits for the other robot, which does not ask.
            asked = asyncio.create_task(ask(shown(2)))
            await asyncio.sleep(0.1)
            ended = asyncio.create_task(context.__aexit__(None, None, None))
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(idle.recv(), 5)
            assert (idle.close_code, idle.close_reason) == (1001, "the server ends")
            assert seen((await asked)["actions"])[1] == 2
            await ended
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await connect(address)

    asyncio.run(scenario())
