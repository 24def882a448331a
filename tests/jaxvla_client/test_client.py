"""The client against a server that speaks openpi's protocol: answers, errors, restarts, deadlines, tokens, TLS."""

import shutil
import socket
import ssl
import subprocess
import time

import numpy as np
import pytest
from serving_clients.openpi_server import JAXVLA, METADATA, OpenpiServer

from jaxvla_client.client import Client
from jaxvla_client.codec import Bounds
from jaxvla_client.errors import AccessError, ClientError, CodecError, ConnectionLost, ServerError, TooLate


def test_metadata_come_first_and_then_an_answer_to_each_request():
    with OpenpiServer() as server, Client(port=server.port) as client:
        assert client.metadata == METADATA
        assert client.facts is None
        pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
        for x in (0.5, 1.5):
            np.testing.assert_array_equal(client.act({"x": x, "image": pixels})["actions"], [[x, 0], [x, 1]])
        np.testing.assert_array_equal(server.requests[1]["image"], pixels)
        assert {*server.requests[0]} == {"x", "image"}  # nothing that openpi's servers do not know


def test_an_error_is_the_servers_own_text_and_the_next_request_goes_on():
    with OpenpiServer() as server, Client(port=server.port) as client:
        for _ in range(2):
            with pytest.raises(ServerError, match=r"^KeyError: the observation lacks 'x'$"):
                client.act({"y": 1.0})
            assert client.act({"x": 2.0})["actions"][0, 0] == 2


def test_a_server_that_restarts_is_reached_again():
    server = OpenpiServer()
    with server:
        client = Client(port=server.port, patience=5.0)
        client.act({"x": 1.0})
    with server:
        assert client.act({"x": 3.0})["actions"][0, 0] == 3
    start = time.monotonic()
    with pytest.raises(ConnectionLost, match=rf"ws://127.0.0.1:{server.port} is not reached \(.*refused\) after"):
        client.act({"x": 4.0}, timeout=0.5)
    assert time.monotonic() - start < 2
    client.close()


def test_a_port_that_is_closed_is_an_error_at_once_or_after_its_patience():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for patience in (0.0, 0.3):
        start = time.monotonic()
        with pytest.raises(ConnectionLost, match=r"refused.* is it running, and is that its address"):
            Client(port=port, patience=patience)
        assert time.monotonic() - start < patience + 1


def test_who_listens_and_says_nothing_is_no_policy_server():
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(ConnectionLost, match=r"is not reached \(timed out"),
    ):
        Client(port=mute.getsockname()[1], patience=0.0)


def test_an_answer_that_is_late_is_none_and_is_not_taken_for_the_next():
    with OpenpiServer() as server, Client(port=server.port) as client:
        server.delay = 0.5
        with pytest.raises(TooLate, match="has not answered in time"):
            client.act({"x": 1.0}, timeout=0.1)
        server.delay = 0.0
        assert client.act({"x": 2.0})["actions"][0, 0] == 2


@pytest.mark.parametrize("token", [None, "wrong", "rigth"])
def test_a_wrong_token_is_refused_at_once(token):
    with OpenpiServer(token="right") as server:
        start = time.monotonic()
        with pytest.raises(AccessError, match=r"answers 401: the token is missing or wrong\. Give the token"):
            Client(port=server.port, token=token, patience=20.0)
        assert time.monotonic() - start < 10
        with Client(port=server.port, token="right") as client:
            client.act({"x": 1.0})


def test_what_cannot_be_sent_or_read_is_an_error():
    with OpenpiServer() as server, Client(port=server.port, bounds=Bounds(nbytes=400)) as client:
        with pytest.raises(CodecError, match="dtype object cannot be sent"):
            client.act({"x": np.array([{}])})
        client.act({"x": 1.0})
        server.chunk = 100
        with pytest.raises((CodecError, ConnectionLost)):
            client.act({"x": 1.0})


@pytest.mark.parametrize(
    ("host", "port", "kind"), [("no such host", 8000, ClientError), ("127.0.0.1", "x", ClientError)]
)
def test_what_is_no_address_is_an_error(host, port, kind):
    with pytest.raises(kind, match=r"ws://.*:"):
        Client(host, port, patience=0.0)


def test_servers_of_jaxvla_are_told_what_others_are_not():
    with OpenpiServer(JAXVLA) as server, Client(port=server.port) as client:
        assert client.facts["needed"] == ["x", "language"]
        client.act({"x": 1.0}, timeout=2.0, options={"reset": True})
        assert server.requests[0]["jaxvla"] == {"deadline_ms": 2000.0, "reset": True}
    several = {"server": "jaxvla", "policies": {"a": {"needed": []}, "b": {}}}
    with OpenpiServer(several) as server:
        with (
            Client(port=server.port) as client,
            pytest.raises(ClientError, match="serves several policies; name one of a, b"),
        ):
            _ = client.facts
        with Client(port=server.port, policy="a") as client:
            assert client.facts == {"needed": []}
            assert client.address.endswith("/a")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl that makes a certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    own = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command, *own], check=True, capture_output=True)
    return folder


def test_a_secret_connection_needs_a_certificate_that_is_trusted(certificate):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with OpenpiServer(tls=tls) as server:
        trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        with Client(port=server.port, tls=trusting) as client:
            assert client.address == f"wss://127.0.0.1:{server.port}"
            assert client.act({"x": 1.0})["actions"][0, 0] == 1
        with pytest.raises(AccessError, match="is not trusted: self-signed certificate"):
            Client(port=server.port, tls=ssl.create_default_context(), patience=20.0)
    with OpenpiServer() as server, pytest.raises((AccessError, ConnectionLost)):
        Client(port=server.port, tls=trusting, patience=0.0)
