"""TLS, client certificates and bearer tokens on both ports."""

import datetime
import ipaddress
import ssl

import grpc
import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving_stubs import IMAGE, Stubs, predict, refused

from keras_unigan.errors import CodedError
from keras_unigan.serving import conformance, security, wire
from keras_unigan.serving.server import Server
from keras_unigan.serving.status import ServingError

USER, ADMIN = "user-token-0123456789", "admin-token-0123456789"


class Pair:
    """Key and certificate, signed by another pair or by itself."""

    def __init__(self, name, issuer=None):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        signer, now = issuer or self, datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(signer._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(issuer is None, None), True)
            .add_extension(x509.SubjectAlternativeName([address]), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer._key.public_key()), False
            )
        )
        if issuer is None:
            usage = [name in ("key_cert_sign", "crl_sign") for name in _USES]
            builder = builder.add_extension(x509.KeyUsage(*usage), True)
        made = builder.sign(signer._key, hashes.SHA256())
        self.certificate = made.public_bytes(serialization.Encoding.PEM).decode()
        self.key = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()


_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@pytest.fixture(scope="module")
def pairs():
    """(root, server, client)."""
    root = Pair("root")
    return root, Pair("server", root), Pair("client", root)


def write(folder, pairs, verify):
    root, server, _ = pairs
    path = folder / "ssl.config"
    path.write_text(
        f'server_key: "{server.key}"\nserver_cert: "{server.certificate}"\n'
        f'custom_ca: "{root.certificate}"\nclient_verify: {str(verify).lower()}\n'
    )
    return str(path)


def test_tls(base, tmp_path, pairs, capsys):
    root = pairs[0].certificate
    with Server(base, ssl_config_file=write(tmp_path, pairs, False)) as running:
        assert running.rest_url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cadata=root)
        assert httpx.get(f"{running.rest_url}/readyz", verify=context).json() == {"ready": True}
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{running.rest_url}/readyz")
        with pytest.raises(httpx.TransportError):
            httpx.get(running.rest_url.replace("https", "http") + "/readyz")
        stubs = Stubs(running.grpc_addr)
        assert refused(stubs.prediction.Predict, predict(inputs={"image": IMAGE}))[0] == (
            "UNAVAILABLE"
        )
        stubs.channel.close()
        # The public conformance command speaks TLS as well.
        (tmp_path / "root.pem").write_text(root)
        arguments = ["--grpc_addr", running.grpc_addr, "--rest_url", running.rest_url]
        arguments += ["--model_name", "toy", "--ca_file", str(tmp_path / "root.pem")]
        assert conformance.main(arguments) == 0, capsys.readouterr().out


def test_client_certificates(base, tmp_path, pairs):
    root, _, client = pairs
    with Server(base, ssl_config_file=write(tmp_path, pairs, True)) as running:
        context = ssl.create_default_context(cadata=root.certificate)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{running.rest_url}/readyz", verify=context)
        (tmp_path / "client.pem").write_text(client.key + client.certificate)
        context.load_cert_chain(tmp_path / "client.pem")
        assert httpx.get(f"{running.rest_url}/readyz", verify=context).status_code == 200
        for key, expected in ((None, "UNAVAILABLE"), (client, None)):
            pair = (key.key.encode(), key.certificate.encode()) if key else (None, None)
            credentials = grpc.ssl_channel_credentials(root.certificate.encode(), *pair)
            with grpc.secure_channel(running.grpc_addr, credentials) as channel:
                stub = wire.prediction_service_pb2_grpc.PredictionServiceStub(channel)
                request = predict(inputs={"image": IMAGE})
                if expected:
                    assert refused(stub.Predict, request)[0] == expected
                else:
                    assert stub.Predict(request, timeout=20).outputs


def test_key_and_certificate_must_belong_together(base, tmp_path, pairs):
    _, server, client = pairs
    path = tmp_path / "ssl.config"
    path.write_text(f'server_key: "{client.key}"\nserver_cert: "{server.certificate}"\n')
    with pytest.raises(CodedError, match="PEM texts that belong together") as caught:
        Server(base, ssl_config_file=str(path))
    assert "BEGIN" not in str(caught.value)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, toy_models):
    """A server with users and an admin."""
    import shutil

    folder = tmp_path_factory.mktemp("guarded")
    shutil.copytree(toy_models[0], folder / "toy" / "1")
    (folder / "users").write_text(f"another-token-0123456789\n{USER}\n")
    (folder / "admins").write_text(f"{ADMIN}\n")
    options = {
        "auth_token_file": str(folder / "users"),
        "admin_token_file": str(folder / "admins"),
    }
    with Server(folder / "toy", **options) as running:
        yield running


def bearer(token):
    return [("authorization", f"Bearer {token}")]


def test_tokens_over_grpc(guarded):
    stubs = Stubs(guarded.grpc_addr)
    request = predict(inputs={"image": IMAGE})
    for token in (USER, ADMIN):
        assert stubs.prediction.Predict(request, metadata=bearer(token), timeout=20).outputs
    for metadata in (None, bearer("wrong"), bearer(""), [("authorization", f"Basic {USER}")]):
        answer = refused(stubs.prediction.Predict, request, metadata=metadata)
        assert answer == ("UNAUTHENTICATED", "The request needs a valid bearer token")
    # Far more than gRPC would take in one piece is refused without being read.
    large = predict(inputs={"image": np.zeros((1, 2000, 2000, 1), np.float32)})
    assert refused(stubs.prediction.Predict, large)[0] == "UNAUTHENTICATED"
    reload = wire.model_management_pb2.ReloadConfigRequest()
    call = stubs.models.HandleReloadConfigRequest
    assert refused(call, reload)[0] == "UNAUTHENTICATED"
    assert refused(call, reload, metadata=bearer(USER)) == (
        "PERMISSION_DENIED",
        "Reloading needs the token of an admin",
    )
    assert refused(call, reload, metadata=bearer(ADMIN))[0] == "INVALID_ARGUMENT"
    health = health_pb2_grpc.HealthStub(stubs.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == 1
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as caught:
        list(reflection.ServerReflectionInfo(iter([asked]), timeout=20))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    stubs.channel.close()


def test_tokens_over_rest(guarded):
    with httpx.Client(base_url=guarded.rest_url) as rest:
        for path in ("/v1/models/toy", "/monitoring/prometheus/metrics", "/v1/models"):
            answer = rest.get(path)
            assert answer.status_code == 401
            assert answer.json() == {"error": "The request needs a valid bearer token"}
            assert answer.headers["www-authenticate"] == "Bearer"
        headers = {"authorization": f"bearer {USER}"}
        assert rest.get("/v1/models/toy", headers=headers).status_code == 200
        assert rest.get("/monitoring/prometheus/metrics", headers=headers).status_code == 200
        for path in ("/healthz", "/readyz"):
            assert rest.get(path).status_code == 200


def test_an_admin_file_alone_guards_reloads_only(tmp_path):
    (tmp_path / "admins").write_text(ADMIN)
    tokens = security.Tokens(admin_file=str(tmp_path / "admins"))
    tokens.check(None)
    tokens.check(f"Bearer {ADMIN}", admin=True)
    with pytest.raises(ServingError, match="PERMISSION_DENIED"):
        tokens.check(None, admin=True)


@pytest.mark.parametrize("text", ["", "\n", "short\n", f"{USER}\nshort"])
def test_token_files_that_are_refused(tmp_path, text):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(CodedError, match="no token, or one that can be guessed") as caught:
        security.Tokens(str(tmp_path / "tokens"))
    assert "short" not in str(caught.value)
    with pytest.raises(CodedError, match=r"no readable file.*--auth_token_file"):
        security.Tokens(str(tmp_path / "no"))


def test_a_server_that_is_open_to_others_says_so(capsys):
    from keras_unigan.serving.server import _warn
    from keras_unigan.serving.settings import Options

    _warn(Options(model_base_path="x"))
    assert capsys.readouterr().err == ""
    _warn(Options(model_base_path="x", host="0.0.0.0", auth_token_file="t"))
    assert capsys.readouterr().err == "Warning: 0.0.0.0 is open to others without TLS\n"
