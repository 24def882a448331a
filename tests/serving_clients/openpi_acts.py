"""In the environment of openpi-client: acts, errs, and comes back after the server was away. See test_clients.py.

python openpi_acts.py PORT OBSERVATIONS.npz ACTIONS.npz
"""

import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def observation(given, i):
    views = {"images0": given["images0"][i], "proprio": given["proprio"][i]}
    return {**views, "goals": {"images0": given["goals"][i]}}


def main(port, given_path, acted_path):
    given = np.load(given_path)
    policy = WebsocketClientPolicy("127.0.0.1", port)
    own = policy.get_server_metadata()["policies"]["run"]
    assert own["contract"]["control_frequency"] == 5.0, own
    count = len(given["images0"])
    acted = [policy.infer(observation(given, i)) for i in range(count)]
    assert all(answer["policy_timing"]["infer_ms"] > 0 for answer in acted)
    refused = ""
    try:
        policy.infer({"images0": given["images0"][0]})
    except RuntimeError as error:
        refused = str(error)
    assert "the observation lacks 'proprio'; what came holds 'images0', and needed are" in refused, refused
    assert "Traceback" not in refused, refused
    broker = ActionChunkBroker(policy, action_horizon=2)
    played = [broker.infer(observation(given, 0))["actions"] for _ in range(4)]
    np.savez(acted_path, actions=[answer["actions"] for answer in acted], played=played)
    print("restart", flush=True)
    sys.stdin.readline()
    try:
        policy.infer(observation(given, 0))
    except Exception as error:
        print(f"away: {type(error).__name__}", flush=True)
    again = WebsocketClientPolicy("127.0.0.1", port).infer(observation(given, 0))
    np.testing.assert_array_equal(again["actions"], acted[0]["actions"])
    print("back", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
