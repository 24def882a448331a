"""Who may connect, before anything is served."""

import asyncio
import shutil
import ssl
import subprocess

import pytest
from serving.server.hosts import client, make_hosted, seen, serving, shown
from websockets.asyncio.client import connect

from jaxvla.errors import ConfigError
from jaxvla.serving.server.access import Access


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "robot.local"])
def test_other_addresses_need_a_token(host):
    with pytest.raises(ConfigError, match="can be reached from other machines: give a --token"):
        Access(host)
    assert Access(host, token="secret").admits("Bearer secret")
    assert "secret" not in repr(Access(host, token="secret"))
    assert Access(host, anonymous=True).admits(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_addresses_of_this_machine_need_none(host):
    assert Access(host).admits(None)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "secret",
        "Bearer",
        "Bearer secre",
        "Bearer secrets",
        "Basic secret",
        "Basic !",
        "Digest secret",
        "Basic /w==",
    ],
)
def test_what_is_no_token(header):
    assert not Access(token="secret").admits(header)


def test_encryption(tmp_path):
    with pytest.raises(ConfigError, match="both --tls_certificate and --tls_key"):
        Access(certificate="a.pem")
    with pytest.raises(ConfigError, match=r"a\.pem is no file"):
        Access(certificate="a.pem", key="b.pem").tls()
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, which makes a certificate")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *names], check=True, capture_output=True)
    with pytest.raises(ConfigError, match="are no certificate and its key"):
        Access(certificate=str(key), key=str(certificate)).tls()

    async def scenario():
        async with serving(make_hosted(), access=Access(certificate=str(certificate), key=str(key))) as address:
            assert address.startswith("wss://127.0.0.1:")
            async with client(address, ssl=ssl.create_default_context(cafile=certificate)) as (ask, *_):
                assert seen((await ask(shown(5)))["actions"])[1] == 5
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(address)

    asyncio.run(scenario())
