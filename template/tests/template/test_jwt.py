"""People call with tokens of one issuer: only what it has signed, for us and for now, lets anyone in."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import ValidationError
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from app.access import jwt_auth
from app.access.callers import Caller, hash_key
from app.access.jwt_auth import JwtAuth
from app.config import JwtSettings, Settings
from app.errors import AuthUnavailable, Unauthorized
from app.main import create_app
from tests.wire import CHAT, HELLO

ISSUER = "https://issuer.example"
AUDIENCE = "our-backend"
ASKED = {"model": "demo", "messages": HELLO}


def segment(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


class Key:
    """A signing key, whose public half an issuer publishes."""

    def __init__(self, key_id: str | None, private: Any, algorithm: str) -> None:
        self.key_id, self.private, self.algorithm = key_id, private, algorithm

    @property
    def jwk(self) -> dict[str, Any]:
        kind = jwt.get_algorithm_by_name(self.algorithm)
        fields: dict[str, Any] = kind.to_jwk(self.private.public_key(), as_dict=True)
        return fields | {"use": "sig", "alg": self.algorithm} | ({"kid": self.key_id} if self.key_id else {})

    @property
    def pem(self) -> bytes:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        pem: bytes = self.private.public_key().public_bytes(serialization.Encoding.PEM, form)
        return pem

    def token(self, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Sign claims that are good but for those given; one given as None is left out."""
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 300}
        given = {name: value for name, value in (good | claims).items() if value is not None}
        headers = ({"kid": self.key_id} if self.key_id else {}) | (header or {})
        return jwt.encode(given, self.private, self.algorithm, headers=headers)


RSA = Key("rsa", rsa.generate_private_key(65537, 2048), "RS256")
EC = Key("ec", ec.generate_private_key(ec.SECP256R1()), "ES256")
ED = Key("ed", ed25519.Ed25519PrivateKey.generate(), "EdDSA")
NAMELESS = Key(None, ec.generate_private_key(ec.SECP256R1()), "ES256")
OTHER = Key("ec", ec.generate_private_key(ec.SECP256R1()), "ES256")
"""Somebody else's key, under the issuer's key id."""


class Issuer:
    """An issuer's key set on a loopback port.

    Attributes:
        keys: what it publishes.
        body: what it says instead.
        status: of its answers.
        fetches: how often it was asked.
        speaks: cleared, it keeps whoever asks waiting.
    """

    def __init__(self) -> None:
        self.keys = [RSA, EC]
        self.body: bytes | None = None
        self.status = 200
        self.fetches = 0
        self.speaks = threading.Event()
        self.speaks.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += 1
                issuer.speaks.wait()
                published = json.dumps({"keys": [key.jwk for key in issuer.keys]}).encode()
                body = published if issuer.body is None else issuer.body
                self.send_response(issuer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.stop()


@pytest.fixture(scope="module")
def steady() -> Iterator[Issuer]:
    """An issuer that no test changes."""
    issuer = Issuer()
    yield issuer
    issuer.stop()


def auth_of(issuer: Issuer, **given: Any) -> JwtAuth:
    return JwtAuth(JwtSettings(issuer=ISSUER, audience=[AUDIENCE], jwks_url=issuer.url, **given))


def find(auth: JwtAuth, *tokens: str) -> list[Caller]:
    async def callers() -> list[Caller]:
        return [await auth.find(token) for token in tokens]

    return asyncio.run(callers())


# Tokens.


@pytest.mark.parametrize("key", [RSA, EC], ids=["RSA", "EC"])
def test_a_good_token_names_its_caller(steady: Issuer, key: Key) -> None:
    [caller] = find(auth_of(steady), key.token())
    assert caller.name == "jwt:alice"
    assert not caller.may_read_metrics
    assert caller.label == "jwt", "people are no labels of metrics"


def test_an_ed25519_key_and_one_without_an_id_are_good_too(issuer: Issuer) -> None:
    issuer.keys = [ED, NAMELESS]
    assert [caller.name for caller in find(auth_of(issuer), ED.token(), NAMELESS.token(sub="bob"))] == [
        "jwt:alice",
        "jwt:bob",
    ]


def test_another_claim_may_name_the_caller(steady: Issuer) -> None:
    [caller] = find(auth_of(steady, subject="email"), EC.token(email="alice@example.com"))
    assert caller.name == "jwt:alice@example.com"


@pytest.mark.parametrize("audience", [AUDIENCE, ["another", AUDIENCE]], ids=str)
def test_a_token_may_be_for_several(steady: Issuer, audience: Any) -> None:
    assert find(auth_of(steady), EC.token(aud=audience))


@pytest.mark.parametrize("seconds", [-20, 20])
def test_clocks_may_differ_a_little(steady: Issuer, seconds: int) -> None:
    now = time.time()
    assert find(auth_of(steady), EC.token(exp=now + seconds) if seconds < 0 else EC.token(nbf=now + seconds))


def headed_by(header: bytes, of: str = "..", signature: str = "AA") -> str:
    """Put a header of one's own before the claims of a token."""
    return f"{segment(header)}.{of.split('.')[1]}.{signature}"


def with_public_key_as_secret(key: Key) -> str:
    """The classic: what is signed with HS256 by the public key, to which everybody has access."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 300}
    signed = f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': key.key_id})}.{segment(claims)}"
    return f"{signed}.{segment(hmac.digest(key.pem, signed.encode(), hashlib.sha256))}"


def with_another_payload(token: str) -> str:
    head, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "==")) | {"sub": "mallory"}
    return f"{head}.{segment(claims)}.{signature}"


BAD: dict[str, Callable[[], str]] = {
    "expired": lambda: EC.token(exp=time.time() - 60),
    "not valid yet": lambda: EC.token(nbf=time.time() + 300),
    "issued in the future": lambda: EC.token(iat=time.time() + 300),
    "without an end": lambda: EC.token(exp=None),
    "for another audience": lambda: EC.token(aud="another"),
    "without an audience": lambda: EC.token(aud=None),
    "of another issuer": lambda: EC.token(iss="https://another.example"),
    "of an issuer whose name begins alike": lambda: EC.token(iss=f"{ISSUER}.example.com"),
    "without an issuer": lambda: EC.token(iss=None),
    "without a subject": lambda: EC.token(sub=None),
    "not signed, alg none": lambda: headed_by(b'{"alg": "none", "kid": "ec"}', EC.token(), ""),
    "not signed, alg NONE": lambda: headed_by(b'{"alg": "NONE", "kid": "ec"}', EC.token(), ""),
    "not signed, no alg": lambda: headed_by(b'{"kid": "ec"}', EC.token(), ""),
    "without its signature": lambda: EC.token().rpartition(".")[0] + ".",
    "signed with the public RSA key as a secret": lambda: with_public_key_as_secret(RSA),
    "signed with the public EC key as a secret": lambda: with_public_key_as_secret(EC),
    "signed by somebody else": OTHER.token,
    "signed by an unknown key": lambda: Key("no-such-key", OTHER.private, "ES256").token(),
    "signed by one key in the name of another": lambda: EC.token(header={"kid": "rsa"}),
    "with another algorithm than its key's": lambda: Key("rsa", RSA.private, "PS256").token(),
    "changed after it was signed": lambda: with_another_payload(EC.token()),
    "brings its own key": lambda: OTHER.token(header={"jwk": OTHER.jwk}),
    "says where its key is": lambda: OTHER.token(header={"jku": "http://127.0.0.1:9/keys", "x5u": "http://x/"}),
    "wants what nobody knows": lambda: EC.token(header={"crit": ["exp", "new"], "new": 1}),
    "a key id that is no text": lambda: headed_by(b'{"alg": "ES256", "kid": ["ec"]}'),
    "a key id that is a path": lambda: EC.token(header={"kid": "../../../dev/null"}),
    "a header that is no object": lambda: headed_by(b"[]"),
    "a header that is nested deeply": lambda: headed_by(b"[" * 40_000),
    "a header with a long number": lambda: headed_by(b'{"alg": ' + b"9" * 5000 + b"}"),
    "a header that is not UTF-8": lambda: headed_by(b'{"alg": "\xff"}'),
    "no Base64": lambda: "ä.ö.ü",
    "empty parts": lambda: "..",
    "too many parts": lambda: EC.token() + ".x",
    "no parts": lambda: "token",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_refused(steady: Issuer, name: str) -> None:
    token = BAD[name]()
    with pytest.raises(Unauthorized) as refused:
        find(auth_of(steady), token)
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"
    assert refused.value.message == "This token is not valid here."


def test_a_secret_that_the_issuer_publishes_signs_nothing(issuer: Issuer) -> None:
    secret = b"a secret of thirty-two characters"
    issuer.body = json.dumps(
        {"keys": [EC.jwk, {"kty": "oct", "kid": "secret", "k": segment(secret), "alg": "HS256"}]}
    ).encode()
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 300}
    with pytest.raises(Unauthorized):
        find(auth_of(issuer), jwt.encode(claims, secret, "HS256", headers={"kid": "secret"}))


REASONS = {
    "expired": "ExpiredSignatureError",
    "not valid yet": "ImmatureSignatureError",
    "for another audience": "InvalidAudienceError",
    "of another issuer": "InvalidIssuerError",
    "without a subject": "MissingRequiredClaimError",
    "not signed, alg none": "InvalidAlgorithmError",
    "signed with the public RSA key as a secret": "InvalidAlgorithmError",
    "with another algorithm than its key's": "InvalidKeyError",
    "signed by an unknown key": "InvalidKeyError",
    "changed after it was signed": "InvalidSignatureError",
    "empty parts": "DecodeError",
}


@pytest.mark.parametrize("name", REASONS)
def test_the_log_says_why_a_token_was_refused_and_nothing_of_the_token(steady: Issuer, name: str) -> None:
    token = BAD[name]()
    with capture_logs() as lines, pytest.raises(Unauthorized):
        find(auth_of(steady), token)
    [line] = lines
    assert (line["log_level"], line["event"], line["reason"]) == ("info", "token refused", REASONS[name])
    assert "alice" not in str(line)


# Keys as issuers publish them.


class Jwk(Key):
    """A key whose published form is changed; a field given as None is left out."""

    def __init__(self, key: Key, algorithm: str | None = None, **fields: Any) -> None:
        super().__init__(fields.get("kid", key.key_id), key.private, algorithm or key.algorithm)
        self._published = {k: v for k, v in (key.jwk | fields).items() if v is not None}

    @property
    def jwk(self) -> dict[str, Any]:
        return self._published


SECOND = Key("rsa", rsa.generate_private_key(65537, 2048), "RS256")


def test_of_two_keys_with_one_id_each_is_good(issuer: Issuer) -> None:
    issuer.keys = [RSA, SECOND, Jwk(EC, kid="rsa")]
    signers = (RSA, SECOND, Jwk(EC, kid="rsa"))
    assert len(find(auth_of(issuer), *(key.token() for key in signers))) == 3


def test_a_key_for_encryption_signs_nothing(issuer: Issuer) -> None:
    issuer.keys = [Jwk(RSA, use="enc"), EC]
    with pytest.raises(Unauthorized):
        find(auth_of(issuer), RSA.token())
    issuer.keys = [Jwk(RSA, use=None, key_ops=["encrypt"]), EC]
    with pytest.raises(Unauthorized):
        find(auth_of(issuer), RSA.token())


def test_a_key_for_encryption_beside_one_for_signatures_does_no_harm(issuer: Issuer) -> None:
    issuer.keys = [RSA, Jwk(SECOND, use="enc", alg="RSA-OAEP")]
    assert find(auth_of(issuer), RSA.token())


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS384"])
def test_a_key_that_names_no_algorithm_is_good_for_all_of_its_kind(issuer: Issuer, algorithm: str) -> None:
    issuer.keys = [Jwk(RSA, alg=None)]
    assert find(auth_of(issuer), Jwk(RSA, algorithm).token())


def test_a_key_that_names_its_algorithm_is_good_for_no_other(issuer: Issuer) -> None:
    issuer.keys = [RSA]
    with pytest.raises(Unauthorized):
        find(auth_of(issuer), Jwk(RSA, "RS512").token())


def test_a_token_without_a_key_id_is_tried_with_every_key(issuer: Issuer) -> None:
    issuer.keys = [EC, SECOND, RSA, NAMELESS]
    tokens = [jwt.encode(claims(), key.private, key.algorithm) for key in (RSA, EC, SECOND)]
    assert len(find(auth_of(issuer), *tokens)) == 3
    with pytest.raises(Unauthorized):
        find(auth_of(issuer), jwt.encode(claims(), OTHER.private, "ES256"))


def test_a_key_without_an_id_is_good_for_a_token_that_names_one(issuer: Issuer) -> None:
    issuer.keys = [NAMELESS]
    assert find(auth_of(issuer), NAMELESS.token(header={"kid": "its name"}))


@pytest.mark.parametrize("published", ["EdDSA", "Ed25519", None])
@pytest.mark.parametrize("signed", ["EdDSA", "Ed25519"])
def test_ed25519_is_known_by_both_its_names(issuer: Issuer, published: str | None, signed: str) -> None:
    """RFC 9864, section 2.2."""
    issuer.keys = [Jwk(ED, alg=published)]
    head, _, _ = ED.token().split(".")
    head = segment({"alg": signed, "kid": "ed", "typ": "JWT"})
    text = f"{head}.{segment(claims())}"
    assert find(auth_of(issuer), f"{text}.{segment(ED.private.sign(text.encode()))}")


def test_one_key_that_can_not_be_read_does_not_hide_the_others(issuer: Issuer) -> None:
    issuer.body = json.dumps({"keys": [None, {"kty": "new"}, {"kty": "RSA", "n": "", "e": []}, EC.jwk]}).encode()
    assert find(auth_of(issuer), EC.token())


def claims() -> dict[str, Any]:
    return {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 300}


# Names.


def test_a_subject_is_never_named_like_a_caller_with_a_key(steady: Issuer) -> None:
    table: Any = {"demo": {"upstream": "demo/echo"}}
    callers: Any = {"web": {"key_sha256": hash_key("key"), "requests_per_minute": 1}}
    people: Any = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": steady.url, "requests_per_minute": 1}
    settings = Settings(models=table, default_model="demo", callers=callers, auth={"jwt": people})  # type: ignore[arg-type]
    with TestClient(create_app(settings)) as client, capture_logs() as lines:
        keys = [EC.token(sub="web"), "key"]
        assert [client.post(CHAT, json=ASKED, headers=bearer(key)).status_code for key in keys] == [200, 200]
        assert [client.post(CHAT, json=ASKED, headers=bearer(key)).status_code for key in keys] == [429, 429]
    assert [line["caller"] for line in lines if line["event"] == "request"] == ["jwt:web", "web"] * 2


def test_no_caller_with_a_key_is_named_like_a_subject() -> None:
    with pytest.raises(ValidationError, match="jwt:"):
        Settings(callers={"jwt:alice": {"key_sha256": hash_key("key")}})  # type: ignore[dict-item]


def test_long_subjects_are_told_apart_to_their_end(steady: Issuer) -> None:
    long = "x" * 300
    subjects = [long + "a", long + "b", f"sha256:{hashlib.sha256(f'{long}a'.encode()).hexdigest()}", long]
    names = {caller.name for caller in find(auth_of(steady), *(EC.token(sub=subject) for subject in subjects))}
    assert len(names) == 4
    assert max(map(len, names)) < 200


@pytest.mark.parametrize("subject", [None, True, 5, "", [], {}, 1.5, "\ud800"], ids=str)
def test_a_subject_that_is_no_name_is_refused(steady: Issuer, subject: Any) -> None:
    signed = jwt.encode(claims() | {"uid": subject}, EC.private, "ES256", headers={"kid": "ec"})
    with pytest.raises(Unauthorized):
        find(auth_of(steady, subject="uid"), signed)


# Audiences.

LISTS = {"JSON": '["one", "our-backend"]', "commas": "one, our-backend", "one": "our-backend"}


@pytest.mark.parametrize("name", LISTS)
def test_audiences_may_be_several_from_the_environment(
    steady: Issuer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("APP_AUTH__JWT__ISSUER", ISSUER)
    monkeypatch.setenv("APP_AUTH__JWT__JWKS_URL", steady.url)
    monkeypatch.setenv("APP_AUTH__JWT__AUDIENCE", LISTS[name])
    found = Settings().auth.jwt
    assert found
    assert find(JwtAuth(found), EC.token())


@pytest.mark.parametrize("text", ['["one", "our-backend"]', '"our-backend"'])
def test_audiences_may_be_several_in_the_file(
    steady: Issuer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[auth.jwt]\nissuer = "{ISSUER}"\njwks_url = "{steady.url}"\naudience = {text}\n')
    monkeypatch.setenv("APP_SETTINGS_FILE", str(file))
    found = Settings().auth.jwt
    assert found
    assert find(JwtAuth(found), EC.token())


@pytest.mark.parametrize("audience", [[], "", ["a", ""], ","], ids=str)
def test_no_audience_is_not_every_audience(audience: Any) -> None:
    with pytest.raises(ValidationError):
        JwtSettings(issuer=ISSUER, audience=audience, jwks_url="http://127.0.0.1:9/")


# Keys: fetched, kept, rotated.


def test_the_issuers_keys_are_fetched_from_nowhere_else(issuer: Issuer) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), redirecting_to(issuer.url)) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        auth = JwtAuth(
            JwtSettings(issuer=ISSUER, audience=[AUDIENCE], jwks_url=f"http://127.0.0.1:{server.server_port}/keys")
        )
        with pytest.raises(AuthUnavailable):
            find(auth, EC.token())
        server.shutdown()
        thread.join()
    assert issuer.fetches == 0


def redirecting_to(url: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def test_a_set_of_keys_that_is_too_large_is_not_read_to_its_end(issuer: Issuer) -> None:
    issuer.body = json.dumps({"keys": [EC.jwk], "more": "x" * 1_000_000}).encode()
    with pytest.raises(AuthUnavailable):
        find(auth_of(issuer), EC.token())


def test_keys_are_fetched_once(issuer: Issuer) -> None:
    assert len(find(auth_of(issuer), *[RSA.token(), EC.token()] * 5)) == 10
    assert issuer.fetches == 1


def test_many_callers_at_once_fetch_the_keys_once(issuer: Issuer) -> None:
    auth = auth_of(issuer)

    async def at_once() -> None:
        await asyncio.gather(*(auth.find(EC.token(sub=f"{number}")) for number in range(20)))

    asyncio.run(at_once())
    assert issuer.fetches == 1


def test_a_new_key_is_fetched_when_a_token_names_it(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = auth_of(issuer)
    find(auth, EC.token())
    issuer.keys = [RSA, EC, ED]
    with pytest.raises(Unauthorized):
        find(auth, ED.token())  # too soon after the last fetch
    monkeypatch.setattr(jwt_auth, "FETCH_AGAIN_AFTER", 0)
    assert find(auth, ED.token(), EC.token())
    assert issuer.fetches == 2


def test_made_up_key_ids_do_not_make_us_fetch_again_and_again(issuer: Issuer) -> None:
    auth = auth_of(issuer)
    find(auth, EC.token())
    for number in range(20):
        with pytest.raises(Unauthorized):
            find(auth, EC.token(header={"kid": f"made up {number}"}))
    assert issuer.fetches == 1


def test_a_withdrawn_key_is_refused_when_the_keys_are_fetched_again(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = auth_of(issuer)
    find(auth, EC.token(), RSA.token())
    issuer.keys = [RSA]
    assert find(auth, EC.token())
    monkeypatch.setattr(jwt_auth, "KEYS_FOR", 0)
    monkeypatch.setattr(jwt_auth, "FETCH_AGAIN_AFTER", 0)
    assert find(auth, RSA.token())
    with pytest.raises(Unauthorized):
        find(auth, EC.token())


def test_an_issuer_that_is_down_later_stops_nobody(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = auth_of(issuer)
    find(auth, EC.token())
    issuer.status = 500
    monkeypatch.setattr(jwt_auth, "KEYS_FOR", 0)
    monkeypatch.setattr(jwt_auth, "FETCH_AGAIN_AFTER", 0)
    assert find(auth, EC.token())
    assert issuer.fetches == 2


NO_KEYS: dict[str, tuple[int, bytes]] = {
    "an error": (500, b""),
    "a page": (200, b"<html>"),
    "not found": (404, b"{}"),
    "a list": (200, b"[]"),
    "no keys": (200, b'{"keys": []}'),
    "keys that are no list": (200, b'{"keys": "none"}'),
    "keys that are no objects": (200, b'{"keys": [1, null]}'),
    "keys of an unknown kind": (200, b'{"keys": [{"kty": "new", "kid": "ec"}]}'),
    "nested deeply": (200, b"[" * 100_000),
    "not UTF-8": (200, b"\xff"),
}


@pytest.mark.parametrize("name", NO_KEYS)
def test_without_an_issuers_keys_nobody_can_be_known(issuer: Issuer, name: str) -> None:
    issuer.status, issuer.body = NO_KEYS[name]
    with pytest.raises(AuthUnavailable) as failure:
        find(auth_of(issuer), EC.token())
    assert failure.value.headers["Retry-After"] == "10"


def test_an_issuer_that_can_not_be_reached_is_tried_again(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = auth_of(issuer)
    issuer.status = 503
    with pytest.raises(AuthUnavailable):
        find(auth, EC.token())
    issuer.status = 200
    monkeypatch.setattr(jwt_auth, "FETCH_AGAIN_AFTER", 0)
    assert find(auth, EC.token())


def test_an_issuer_that_does_not_answer_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_auth, "FETCH_WITHIN", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
        began = time.monotonic()
        with pytest.raises(AuthUnavailable):
            find(JwtAuth(JwtSettings(issuer=ISSUER, audience=[AUDIENCE], jwks_url=url)), EC.token())
    assert 0.2 <= time.monotonic() - began < 20


def test_while_keys_are_fetched_again_those_that_we_have_are_good(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = auth_of(issuer)
    find(auth, EC.token())
    monkeypatch.setattr(jwt_auth, "KEYS_FOR", 0)
    monkeypatch.setattr(jwt_auth, "FETCH_AGAIN_AFTER", 0)
    issuer.speaks.clear()

    async def find_meanwhile() -> None:
        waiting = asyncio.create_task(auth.find(EC.token()))
        await asyncio.sleep(0.05)
        await auth.find(EC.token(sub="bob"))
        assert not waiting.done()
        issuer.speaks.set()
        await waiting

    asyncio.run(find_meanwhile())


def test_who_names_an_unknown_key_does_not_wait_for_a_fetch_that_runs(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else anybody could take all places of the service while the issuer stalls."""
    auth = auth_of(issuer)
    find(auth, EC.token())
    monkeypatch.setattr(jwt_auth, "FETCH_AGAIN_AFTER", 0)
    monkeypatch.setattr(jwt_auth, "FETCH_WITHIN", 60)
    issuer.speaks.clear()

    async def find_meanwhile() -> None:
        first = asyncio.create_task(auth.find(EC.token(header={"kid": "made up"})))
        await asyncio.sleep(0.05)
        try:
            async with asyncio.timeout(10):
                for number in range(20):
                    with pytest.raises(AuthUnavailable) as refused:
                        await auth.find(EC.token(header={"kid": f"made up {number}"}))
                    assert refused.value.headers["Retry-After"] == "1"
                assert await auth.find(EC.token())
        finally:
            issuer.speaks.set()
        with pytest.raises(Unauthorized):
            await first

    asyncio.run(find_meanwhile())


def test_no_more_wait_for_the_first_keys_than_may(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_auth, "FETCH_WITHIN", 60)
    auth = JwtAuth(JwtSettings(issuer=ISSUER, audience=[AUDIENCE], jwks_url=issuer.url), max_waiting=3)
    issuer.speaks.clear()

    async def find_meanwhile() -> None:
        waiting = [asyncio.create_task(auth.find(EC.token())) for _ in range(3)]
        await asyncio.sleep(0.05)
        try:
            async with asyncio.timeout(10):
                with pytest.raises(AuthUnavailable):
                    await auth.find(EC.token())
        finally:
            issuer.speaks.set()
        assert len(await asyncio.gather(*waiting)) == 3

    asyncio.run(find_meanwhile())
    assert issuer.fetches == 1


def test_who_leaves_does_not_end_the_fetch_that_others_wait_for(issuer: Issuer) -> None:
    auth = auth_of(issuer)
    issuer.speaks.clear()

    async def leave() -> None:
        leaves, stays = (asyncio.create_task(auth.find(EC.token())) for _ in range(2))
        await asyncio.sleep(0.05)
        leaves.cancel()
        await asyncio.sleep(0.05)
        issuer.speaks.set()
        assert await stays

    asyncio.run(leave())
    assert issuer.fetches == 1


# Over HTTP.


def test_tokens_take_at_most_half_of_the_places_while_the_issuer_stalls(issuer: Issuer) -> None:
    jwt_settings: Any = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": issuer.url}
    callers: Any = {"web": {"key_sha256": hash_key("key")}}
    table: Any = {"demo": {"upstream": "demo/echo"}}
    settings = Settings(
        models=table,
        default_model="demo",
        callers=callers,
        auth={"jwt": jwt_settings},  # type: ignore[arg-type]
        max_in_flight=4,
    )
    issuer.speaks.clear()
    with TestClient(create_app(settings)) as client, ThreadPoolExecutor(6) as pool:

        def ask(key: str) -> int:
            return client.post(CHAT, json=ASKED, headers=bearer(key)).status_code

        try:
            asked = [pool.submit(ask, EC.token(header={"kid": "made up"})) for _ in range(6)]
            refused = [future.result(20) for future in islice(as_completed(asked), 4)]
            assert refused == [503] * 4
            assert ask("key") == 200
            assert sum(future.done() for future in asked) == 4
        finally:
            issuer.speaks.set()
        assert sorted(future.result(20) for future in asked) == [401] * 2 + [503] * 4


@pytest.fixture
def people(steady: Issuer) -> Iterator[TestClient]:
    """An app for people, who may use the demo model twice a minute, and for one caller with a key."""
    jwt_settings: Any = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "jwks_url": steady.url,
        "models": ["demo"],
        "requests_per_minute": 2,
    }
    table: Any = {"demo": {"upstream": "demo/echo"}, "other": {"upstream": "demo/echo"}}
    callers: Any = {"web": {"key_sha256": hash_key("key"), "metrics": True}}
    settings = Settings(models=table, default_model="demo", callers=callers, auth={"jwt": jwt_settings})  # type: ignore[arg-type]
    with TestClient(create_app(settings)) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_each_subject_is_a_caller_with_limits_of_its_own(people: TestClient) -> None:
    def ask(subject: str) -> int:
        return people.post(CHAT, json=ASKED, headers=bearer(EC.token(sub=subject))).status_code

    assert [ask("alice") for _ in range(3)] == [200, 200, 429]
    assert [ask("bob") for _ in range(3)] == [200, 200, 429]


def test_people_may_use_their_models_alone(people: TestClient) -> None:
    response = people.post(CHAT, json=ASKED | {"model": "other"}, headers=bearer(EC.token()))
    assert (response.status_code, response.json()["error"]["code"]) == (403, "model_not_allowed")
    listed = people.get("/v1/models", headers=bearer(EC.token())).json()["data"]
    assert [model["id"] for model in listed] == ["demo"]


@pytest.mark.parametrize("token", ["a.b.c", "not-a-token", ""])
def test_what_is_neither_a_key_nor_a_token_is_refused(people: TestClient, token: str) -> None:
    response = people.post(CHAT, json=ASKED, headers=bearer(token))
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_is_good_beside_tokens_and_needs_no_issuer(people: TestClient) -> None:
    assert people.post(CHAT, json=ASKED | {"model": "other"}, headers=bearer("key")).status_code == 200


def test_without_any_key_nobody_is_let_in_where_people_are(people: TestClient) -> None:
    assert people.post(CHAT, json=ASKED).status_code == 401


def test_people_are_no_labels_of_metrics_and_may_not_read_them(people: TestClient) -> None:
    people.post(CHAT, json=ASKED, headers=bearer(EC.token(sub="carol")))
    assert people.get("/metrics", headers=bearer(EC.token(sub="carol"))).status_code == 403
    page = people.get("/metrics", headers=bearer("key")).text
    assert "carol" not in page


def test_the_playground_is_told_that_a_key_is_needed(steady: Issuer) -> None:
    jwt_settings: Any = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": steady.url}
    settings = Settings(playground=True, auth={"jwt": jwt_settings})  # type: ignore[arg-type]
    with TestClient(create_app(settings)) as client:
        assert client.get("/playground/config.json").json()["key_required"] is True
