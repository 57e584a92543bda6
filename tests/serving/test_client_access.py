"""TLS, client certificates and tokens, from the client's side."""

import datetime
import ipaddress

import numpy as np
import pytest
from commands import unigan

from keras_unigan.errors import CodedError
from keras_unigan.serving.client import Client, Tls
from keras_unigan.serving.server import Server

x509 = pytest.importorskip("cryptography.x509")


class Authority:
    """Makes certificates; each is a pair of PEM texts (key, certificate)."""

    def __init__(self):
        self._key, self._name = self._new("unigan test root")
        self.root = self._sign(self._key, self._name, None)

    @staticmethod
    def _new(name):
        from cryptography.hazmat.primitives.asymmetric import ec

        parts = [x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)]
        return ec.generate_private_key(ec.SECP256R1()), x509.Name(parts)

    def _sign(self, key, name, alternative):
        from cryptography.hazmat.primitives import hashes, serialization

        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(alternative is None, None), critical=True)
        )
        if alternative is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternative), False)
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name, address=None):
        from cryptography.hazmat.primitives import serialization as forms

        key, subject = self._new(name)
        there = x509.IPAddress(ipaddress.ip_address(address)) if address else x509.DNSName(name)
        text = key.private_bytes(
            forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
        )
        return text.decode(), self._sign(key, subject, [there])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with roots, a client's key and certificate, tokens, and two ssl.config files."""
    folder = tmp_path_factory.mktemp("tls")
    ours, others = Authority(), Authority()
    (folder / "ca.pem").write_text(ours.root)
    (folder / "other_ca.pem").write_text(others.root)
    for name, authority in (("client", ours), ("stranger", others)):
        key, certificate = authority.issue(name)
        (folder / f"{name}.key").write_text(key)
        (folder / f"{name}.pem").write_text(certificate)
    for name, place in (("ssl", "127.0.0.1"), ("named", None)):
        key, certificate = ours.issue("segmentation.example", place)
        texts = {"server_key": key, "server_cert": certificate, "custom_ca": ours.root}
        lines = ['{}: "{}"'.format(k, v.replace("\n", "\\n")) for k, v in texts.items()]
        lines.append(f"client_verify: {'true' if name == 'named' else 'false'}")
        (folder / f"{name}.config").write_text("\n".join(lines))
    (folder / "tokens.txt").write_text("0123456789abcdef0123\n")
    return folder


IMAGE = np.ones((1, 2, 2, 1), np.float32)


@pytest.fixture(scope="module")
def guarded(files, toy_models, tmp_path_factory):
    """Server with TLS and a token."""
    folder = tmp_path_factory.mktemp("guarded") / "toy"
    folder.mkdir()
    (folder / "1").symlink_to(toy_models[0])
    options = {"ssl_config_file": str(files / "ssl.config")}
    with Server(folder, **options, auth_token_file=str(files / "tokens.txt")) as running:
        yield running


def test_tls_with_a_token(guarded, files):
    tls, token = Tls(ca=str(files / "ca.pem")), "0123456789abcdef0123"
    with Client(guarded.grpc_addr, "toy", tls=tls, token=token) as client:
        assert client.predict(IMAGE)["probabilities"].tolist() == (2 * IMAGE).tolist()
        assert client.status()[0]["state"] == "AVAILABLE"
    for wrong in (None, "0123456789abcdef9999"):
        with (
            Client(guarded.grpc_addr, "toy", tls=tls, token=wrong) as client,
            pytest.raises(CodedError, match=r"KUG-S04.*UNAUTHENTICATED.*--token-file"),
        ):
            client.predict(IMAGE)


def test_a_server_that_cannot_prove_its_name_is_not_asked(guarded, files):
    for tls in (Tls(ca=str(files / "other_ca.pem")), None):
        with (
            Client(guarded.grpc_addr, "toy", tls=tls, retries=0, timeout=10) as client,
            pytest.raises(CodedError, match=r"KUG-S01.*--tls"),
        ):
            client.predict(IMAGE)


def test_client_certificates_and_a_server_of_another_name(files, base):
    with Server(base, ssl_config_file=str(files / "named.config")) as running:

        def ask(name, server_name="segmentation.example"):
            pair = (str(files / f"{name}.pem"), str(files / f"{name}.key")) if name else (None,) * 2
            tls = Tls(str(files / "ca.pem"), *pair, server_name)
            with Client(running.grpc_addr, "toy", tls=tls, retries=0, timeout=10) as client:
                return client.predict(IMAGE)["probabilities"].tolist()

        assert ask("client") == (2 * IMAGE).tolist()
        for wrong in (("stranger",), (None,), ("client", None)):
            with pytest.raises(CodedError, match="KUG-S01"):
                ask(*wrong)


def test_a_token_never_crosses_a_network_in_the_clear():
    with pytest.raises(CodedError, match=r"KUG-S06 far:8500: found a token without TLS"):
        Client("far:8500", "m", token="0123456789abcdef")
    Client("far:8500", "m", token="0123456789abcdef", tls=Tls()).close()
    Client("unix:/tmp/socket", "m", token="0123456789abcdef").close()


def test_arguments_that_do_not_fit(files, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    for ca in (tmp_path / "no.pem", tmp_path / "empty.pem"):
        with pytest.raises(CodedError, match=r"KUG-S06 .*no readable PEM text"):
            Client("h:1", "m", tls=Tls(ca=str(ca)))
    with pytest.raises(ValueError, match="certificate and key together"):
        Tls(certificate=str(files / "client.pem"))
    with pytest.raises(ValueError, match="token of printable ASCII"):
        Client("127.0.0.1:1", "m", token="a\nb")
    with pytest.raises(ValueError, match=r"max_message_bytes above 4096 .* got 100"):
        Client("h:1", "m", max_message_bytes=100)


def test_command_line(guarded, files, capsys, monkeypatch):
    where = (guarded.grpc_addr, "toy", "--ca", files / "ca.pem")
    assert unigan("client", "status", *where, "--token-file", files / "tokens.txt") == 0
    assert "version 1: AVAILABLE" in capsys.readouterr().out
    monkeypatch.setenv("UNIGAN_TOKEN", "0123456789abcdef0123")
    assert unigan("client", "metadata", *where) == 0
    said = capsys.readouterr().out.splitlines()
    assert "  input image: float [?, ?, ?, 1]" in said
    assert "  output label_map: uint8 [?, ?, ?]" in said
    assert unigan("client", "status", *where, "--label", "stable") == 4
    assert "Unrecognized servable version label: stable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--version", "1", "--label", "a"], "KUG-T02 --label"),
        (["--cert", "a.pem"], "KUG-T02 --cert, --key"),
        (["--timeout", "0"], "KUG-T02 --timeout"),
        (["--token-file", "nowhere.txt"], "KUG-T02 --token-file"),
    ],
)
def test_options_that_do_not_fit(options, text, capsys):
    assert unigan("client", "status", "127.0.0.1:1", "m", *options) == 2
    assert capsys.readouterr().err.startswith(text)


def test_a_way_that_there_is_not(tmp_path, capsys):
    asked = ["segment", "127.0.0.1:1", "m", "a.nii", "-o", tmp_path / "b.nii"]
    assert unigan("client", *asked, "--via", "magic") == 2
    assert "KUG-T02 --via" in capsys.readouterr().err
