"""What a robot's computer runs: the client alone, against a server that restarts meanwhile.

python jaxvla_acts.py PORT GIVEN.npz ACTED.npz
"""

import importlib.util
import sys

import numpy as np

from jaxvla_client.client import Client
from jaxvla_client.errors import ServerError
from jaxvla_client.playing import Playing

port, given, acted = int(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
print("found", [name for name in ("jax", "jaxvla", "absl", "PIL") if importlib.util.find_spec(name)], np.__version__)
observations = [{"images0": given["images0"][i], "proprio": given["proprio"][i]} for i in range(100)]
with Client(port=port, patience=60.0, timeout=60.0) as client:
    playing = Playing(client)
    playing.begin({"goals": {"images0": given["goal"]}})
    actions = [playing.next(observation) for observation in observations]
    try:
        client.act({"images0": given["images0"][0]})
    except ServerError as error:
        print("error", error)
    print("restart", flush=True)
    sys.stdin.readline()
    playing.begin({"goals": {"images0": given["goal"]}})
    again = [playing.next(observation) for observation in observations[:4]]
    print("back", list(client.metadata["policies"]))
np.savez(acted, actions=np.stack(actions), again=np.stack(again))
