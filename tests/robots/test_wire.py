"""Messages as the robot's service writes them, in any NumPy; nothing that comes from there is run."""

import os
import pickle
import pickletools
import threading
import time

import lz4.frame
import numpy as np
import pytest

from jaxvla.errors import DataError, RobotError
from jaxvla.robots.wire import MAX_BYTES, Answering, Line, decode, encode

POSE = np.arange(16.0).reshape(4, 4)


def test_messages_come_back():
    message = {"type": "act", "key": "move", "payload": {"pose": POSE, "blocking": True}, "keys": {"image", "state"}}
    back = decode(encode(message), "a test")
    np.testing.assert_array_equal(back["payload"].pop("pose"), POSE)
    message["payload"].pop("pose")
    assert back == message


def test_what_is_sent_names_nothing_that_an_old_numpy_lacks():
    data = lz4.frame.decompress(encode({"action": np.float32([1, 2]), "pose": POSE, "x": np.float64(2)}))
    strings = [argument for op, argument, _ in pickletools.genops(data) if "UNICODE" in op.name]
    assert {"numpy", "ndarray"} < {*strings}
    assert not any("core" in text for text in strings)
    assert data[1] == 4  # a protocol of Python 3.4
    plain = pickle.loads(data)  # as the service does
    np.testing.assert_array_equal(plain["pose"], POSE)
    plain["action"][0] = 5
    assert plain["x"] == 2


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_the_service_sends_is_read(protocol):
    seen = {"image": np.float32([[0.5, 1.0]]), "state": np.arange(7.0), "full_image": b"jpeg", "status": np.int64(1)}
    back = decode(lz4.frame.compress(pickle.dumps(seen, protocol)), "a test")
    for name in ("image", "state"):
        np.testing.assert_array_equal(back[name], seen[name])
    assert (back["full_image"], back["status"]) == (b"jpeg", 1)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_run(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(DataError, match=r"a test: the pickle names (posix|os)\.mkdir, which is not plain data"):
        decode(lz4.frame.compress(pickle.dumps(Harmful(path))), "a test")
    assert not path.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early"),
        (b"no frame at all", "not an LZ4 frame"),
        (lz4.frame.compress(pickle.dumps({"x": 1}))[:-6], "ends too early"),
        (lz4.frame.compress(pickle.dumps({"x": 1})[:-3]), "not a whole pickle"),
        (lz4.frame.compress(bytes(MAX_BYTES + 1)), f"unfolds to more than {MAX_BYTES} bytes"),
    ],
)
def test_damage_and_excess_are_one_line(data, message):
    with pytest.raises(DataError, match=f"^a test: .*{message}") as caught:
        decode(data, "a test")
    assert "\n" not in str(caught.value)


def test_requests_are_answered_in_order_and_a_service_that_comes_back_is_found():
    answers = []

    def answer(message):
        answers.append(message["number"])
        return {"twice": 2 * message["number"], "pose": POSE}

    with Answering(answer) as service:
        line, port = Line("127.0.0.1", service.port), service.port
        assert [line({"number": number}, 5.0)["twice"] for number in range(3)] == [0, 2, 4]
    with pytest.raises(RobotError, match=rf"service at tcp://127.0.0.1:{port} does not answer within 0.2 s"):
        line({"number": 3}, 0.2)
    with Answering(answer, port):
        assert line({"number": 4}, 5.0)["twice"] == 8
        with pytest.raises(RobotError, match=f"port {port} cannot be listened at"):
            Answering(answer, port)
    line.close()
    assert answers == [0, 1, 2, 4]


def test_an_answer_that_comes_late_is_not_that_of_the_next_request():
    waiting = threading.Event()

    def answer(message):
        if message["number"] == 0:
            waiting.wait(5)
        return message["number"]

    with Answering(answer) as service:
        line = Line("127.0.0.1", service.port)
        with pytest.raises(RobotError, match="does not answer"):
            line({"number": 0}, 0.1)
        waiting.set()
        time.sleep(0.05)
        assert line({"number": 1}, 5.0) == 1
        line.close()
