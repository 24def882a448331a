"""Robot policies that see, read, reason and act, in pure JAX."""

__version__ = "0.1.0"
