"""What a robot's computer needs to talk to a policy server: numpy, msgpack and websockets, and nothing of jaxvla."""

__version__ = "0.1.0"
