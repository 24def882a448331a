"""The wire of the WidowX service: ZeroMQ requests and replies, each an LZ4 frame of a pickle.

That is what the service speaks, on Pythons and NumPys of its own (3.8 and below 2 in its container). A pickle is a
program, and whoever can answer in the service's place would run one here. So what comes is read by the unpickler of
`jaxvla.data.formats.untrusted`, which admits plain containers and arrays, within a bound on its size; and what is sent
names nothing but `numpy.ndarray`, which every NumPy has. The service itself unpickles whatever it is sent, so its port
must be reachable from nowhere else.
"""

import contextlib
import io
import pickle
import threading
from collections.abc import Callable, Mapping
from typing import Any

import lz4.frame
import numpy as np
import zmq

from jaxvla.data.formats.untrusted import loads_pickle
from jaxvla.errors import DataError, RobotError

# Bytes of a message, and of what it unfolds to: two cameras of 480 x 640 in float32, and half as much again.
MAX_BYTES = 12 * 2**20

# Python 3.8 and older read it.
_PROTOCOL = 4

# Seconds after which a server looks whether it is to end.
_POLL = 0.1


def encode(message: Any) -> bytes:
    """A message of plain containers, numbers, text and arrays of numbers, as the service reads it."""
    data = io.BytesIO()
    _Pickler(data, _PROTOCOL).dump(message)
    return lz4.frame.compress(data.getvalue())


def decode(data: bytes, source: str) -> Any:
    """The message of another side, which is not trusted.

    Args:
        data: a whole frame.
        source: what an error calls it.

    Raises:
        DataError: it is damaged, too large, or holds anything but plain data; says what.
    """
    unfolding = lz4.frame.LZ4FrameDecompressor()
    try:
        unfolded = unfolding.decompress(data, MAX_BYTES)
    except RuntimeError as error:
        raise DataError(f"{source}: not an LZ4 frame ({error})") from None
    if not unfolding.eof:
        raise DataError(f"{source}: a frame that ends too early, or unfolds to more than {MAX_BYTES} bytes")
    return loads_pickle(unfolded, source)


class _Pickler(pickle.Pickler):
    """Names no function of NumPy that only some versions have."""

    def reducer_override(self, value: Any) -> Any:
        """Arrays as shape, dtype and bytes, which the receiver may write to."""
        if isinstance(value, np.ndarray | np.generic):
            plain = np.ascontiguousarray(value)
            return np.ndarray, (np.shape(value), plain.dtype.str, bytearray(plain.tobytes()))
        return NotImplemented


class Line:
    """The client's end: one request at a time.

    Args:
        host, port: of the service.
    """

    def __init__(self, host: str, port: int) -> None:
        self.address = f"tcp://{host}:{port}"
        self._socket: zmq.Socket | None = None

    def __call__(self, message: Mapping[str, Any], seconds: float) -> Any:
        """The answer to a message.

        Args:
            message: to encode.
            seconds: to wait for the answer.

        Raises:
            RobotError: nobody answers in time, or what comes is not plain data.
        """
        socket = self._opened()
        try:
            socket.send(encode(message), zmq.NOBLOCK)
            if not socket.poll(1000 * seconds):
                raise zmq.Again
            return decode(socket.recv(zmq.NOBLOCK), f"the answer of {self.address}")
        except (zmq.ZMQError, KeyboardInterrupt) as error:
            self.close()  # a request without its answer blocks the socket
            if isinstance(error, KeyboardInterrupt):
                raise
            raise RobotError(
                f"the robot's service at {self.address} does not answer within {seconds:g} s: is it running, and is "
                "that its address?"
            ) from None
        except DataError as error:
            raise RobotError(str(error)) from error

    def close(self) -> None:
        """Ends the connection; the next message begins another."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _opened(self) -> zmq.Socket:
        if self._socket is None:
            # That of the process: one of its own would wait for its sockets where it is left behind.
            self._socket = zmq.Context.instance().socket(zmq.REQ)
            self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
            self._socket.connect(self.address)
        return self._socket


class Answering:
    """The service's end on this machine: a thread that answers until the block is left.

    Args:
        answer: from a message to its answer.
        port: to listen at; 0 for one that is free.

    Attributes:
        port: that it listens at.
    """

    def __init__(self, answer: Callable[[Any], Any], port: int = 0) -> None:
        self._answer, self._ending = answer, threading.Event()
        self._socket = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        try:
            self._socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise RobotError(f"port {port} cannot be listened at ({error.strerror}); choose another one") from error
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Answering":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close(linger=0)

    def _run(self) -> None:
        while not self._ending.is_set():
            if not self._socket.poll(1000 * _POLL):
                continue
            data = self._socket.recv()
            answer: Any = {"success": False, "message": "Invalid payload"}
            with contextlib.suppress(DataError):
                answer = self._answer(decode(data, "a request"))
            # Pickled as the service does it, by whatever NumPy there is.
            self._socket.send(lz4.frame.compress(pickle.dumps(answer)))
