"""Bad input: what may be wrong with a request, with the answer that it gets."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tests.wire import CHAT, HELLO

EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"
CANARY = "a-text-that-nobody-repeats"
LIMIT = 200_000
"""The largest body, in bytes."""


@dataclass(frozen=True)
class Bad:
    """A bad request, and the answer to it.

    Attributes:
        status: status of the answer.
        code: code of the error; None where the HTTP parser refuses, or where the input does no harm.
        method: HTTP method.
        path: the request's target, as it goes over the wire.
        body: the bytes of the body; None sends none.
        headers: further headers; one given as None is left out.
    """

    status: int
    code: str | None
    method: str = "POST"
    path: str = CHAT
    body: bytes | None = None
    headers: dict[str, str | bytes | None] = field(default_factory=dict)


def said(status: int, code: str | None, value: Any, path: str = CHAT, **headers: str | None) -> Bad:
    """Return a request with a JSON body."""
    return Bad(status, code, path=path, body=json.dumps(value).encode(), headers=dict(headers))


def text(status: int, code: str | None, body: str | bytes, path: str = CHAT) -> Bad:
    """Return a request with a body that only claims to be JSON."""
    return Bad(status, code, path=path, body=body if isinstance(body, bytes) else body.encode())


def misfit(**fields: Any) -> Bad:
    return said(422, "invalid_request", {"messages": HELLO} | fields)


def hello(more: str) -> Bad:
    """Return a good request with more JSON in it, as it stands."""
    return text(422, "invalid_request", "{" + f'"messages": {json.dumps(HELLO)}, {more}' + "}")


def unknown(model: str) -> Bad:
    return said(404, "model_not_found", {"messages": HELLO, "model": model})


def unreadable(**fields: Any) -> Bad:
    """Return what only a model can find out: here the demo model, which is the default."""
    return said(400, "invalid_request", {"messages": HELLO} | fields)


def message(**fields: Any) -> Bad:
    return said(422, "invalid_request", {"messages": [{"role": "user", "content": CANARY} | fields]})


def part(**fields: Any) -> Bad:
    return message(content=[{"type": "image_url"} | fields])


def unfit_input(value: Any, **fields: Any) -> Bad:
    return said(422, "invalid_request", {"input": value} | fields, EMBEDDINGS)


NOT_JSON: dict[str, str | bytes] = {
    "nothing": "",
    "blanks": " \n\t ",
    "a word": CANARY,
    "a single quote": "{'messages': []}",
    "an open brace": "{",
    "an open string": '{"messages": "' + CANARY,
    "a trailing comma": '{"messages": [],}',
    "a comment": '{"messages": [] /* why */}',
    "two values": "{} {}",
    "a key that is no text": "{1: 2}",
    "a BOM": b'\xef\xbb\xbf{"messages": []}',
    "UTF-16": '{"messages": []}'.encode("utf-16"),
    "broken UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "overlong UTF-8": b'{"messages": [{"role": "user", "content": "\xc0\x80"}]}',
    "a surrogate in UTF-8": b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    "half a surrogate pair": r'{"messages": [{"role": "user", "content": "\ud800"}]}',
    "half a surrogate pair as a key": r'{"\udfff": 1}',
    "an unknown escape": r'{"messages": "\x41"}',
    "a raw newline in a text": '{"messages": "\n"}',
    "a NUL byte": b'{"messages": []}\x00',
    "NaN": '{"messages": [], "temperature": NaN}',
    "infinity": '{"messages": [], "temperature": Infinity}',
    "minus infinity, deep": '{"messages": [], "new": {"deep": [-Infinity]}}',
    "a leading zero": '{"messages": [], "n": 01}',
    "a leading plus": '{"messages": [], "n": +1}',
    "hexadecimal": '{"messages": [], "n": 0x1}',
    "a bare point": '{"messages": [], "temperature": .5}',
    "a number of 5,000 digits": '{"messages": [], "seed": ' + "9" * 5000 + "}",
    "lists 50,000 deep": "[" * 50_000,
    "objects 10,000 deep": '{"a":' * 10_000,
    "brackets that close": "[" * 40_000 + "]" * 40_000,
    "a form": "messages=hello",
    "XML": "<messages/>",
    "YAML": "messages: []",
    "Python": "{'messages': None}",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "random bytes": bytes(range(256)),
}

BAD: dict[str, Bad] = {f"not JSON: {name}": text(400, "invalid_json", body) for name, body in NOT_JSON.items()}
BAD |= {
    f"not JSON, embeddings: {name}": text(400, "invalid_json", NOT_JSON[name], EMBEDDINGS)
    for name in ("nothing", "a word", "broken UTF-8", "NaN", "lists 50,000 deep")
}

BAD |= {
    # A body that is no object, or lacks what is needed.
    "null": text(422, "invalid_request", "null"),
    "true": text(422, "invalid_request", "true"),
    "a number": text(422, "invalid_request", "42"),
    "a text": text(422, "invalid_request", f'"{CANARY}"'),
    "a list": text(422, "invalid_request", f'["{CANARY}"]'),
    "an empty object": text(422, "invalid_request", "{}"),
    "a prompt": said(422, "invalid_request", {"prompt": CANARY}),
    "the same key twice": hello('"messages": []'),
    # messages
    "no message": misfit(messages=[]),
    "messages null": misfit(messages=None),
    "messages a text": misfit(messages=CANARY),
    "messages an object": misfit(messages={"role": "user", "content": CANARY}),
    "messages a number": misfit(messages=1),
    "too many messages": misfit(messages=[{"role": "user", "content": ""}] * 4097),
    "a message that is null": misfit(messages=[None]),
    "a message that is a text": misfit(messages=[CANARY]),
    "a message that is a list": misfit(messages=[[]]),
    "a message without a role": misfit(messages=[{"content": CANARY}]),
    "a role that nobody has": message(role=CANARY),
    "a role in capitals": message(role="USER"),
    "a role that is a number": message(role=1),
    "a role that is a list": message(role=["user"]),
    "a message without content": misfit(messages=[{"role": "user"}]),
    "a system message without content": misfit(messages=[{"role": "system"}]),
    "content null": message(content=None),
    "content a number": message(content=1),
    "content true": message(content=True),
    "content an object": message(content={CANARY: CANARY}),
    "content a list of texts": message(content=[CANARY]),
    "a part without a type": message(content=[{"text": CANARY}]),
    "a part whose type is a number": message(content=[{"type": 1}]),
    "a part whose type is long": message(content=[{"type": CANARY * 3}]),
    "too many parts": message(content=[{"type": "text"}] * 1025),
    "a name that is a number": message(name=7),
    "a tool message without its call": message(role="tool"),
    "tool calls that are a text": message(role="assistant", tool_calls=CANARY),
    "tool calls that are texts": message(role="assistant", tool_calls=[CANARY]),
    "too many tool calls": message(role="assistant", tool_calls=[{}] * 513),
    # addresses
    "an image from this disk": part(image_url={"url": "file:///etc/passwd"}),
    "an image from this disk, with one slash": part(image_url={"url": "file:/etc/passwd"}),
    "an image from this disk, in capitals": part(image_url={"url": "FILE:///etc/passwd"}),
    "an image from this disk, after blanks": part(image_url={"url": " \t\x01file:///etc/passwd"}),
    "an image from this disk, with a newline": part(image_url={"url": "fi\nle:///etc/passwd"}),
    "an image by FTP": part(image_url={"url": "ftp://example.com/a.png"}),
    "an image by gopher": part(image_url={"url": "gopher://127.0.0.1:6379/_FLUSHALL"}),
    "an image of a cloud's store": part(image_url={"url": "gs://bucket/a.png"}),
    "an image that is code": part(image_url={"url": "javascript://x"}),
    "an image given as a text": part(image_url="dict://127.0.0.1:11211/stats"),
    "a file of another scheme": message(content=[{"type": "file", "file": {"file_id": "smb://host/share"}}]),
    "a file among files": message(content=[{"type": "file", "files": [{"a": ["ldap://host"]}]}]),
    "a video of another scheme": message(content=[{"type": "video_url", "video_url": {"url": "rtsp://host"}}]),
    # numbers
    "temperature a text": misfit(temperature="1"),
    "temperature true": misfit(temperature=True),
    "temperature a list": misfit(temperature=[1]),
    "temperature too low": misfit(temperature=-0.001),
    "temperature too high": misfit(temperature=2.001),
    "temperature out of range": hello('"temperature": 1e999'),
    "top_p too high": misfit(top_p=1.1),
    "top_p too low": misfit(top_p=-1),
    "top_p a text": misfit(top_p=CANARY),
    "max_tokens zero": misfit(max_tokens=0),
    "max_tokens negative": misfit(max_tokens=-1),
    "max_tokens too high": misfit(max_tokens=131_073),
    "max_tokens enormous": misfit(max_tokens=10**400),
    "max_tokens a fraction": misfit(max_tokens=1.5),
    "max_tokens a text": misfit(max_tokens="100"),
    "max_tokens true": misfit(max_tokens=True),
    "max_completion_tokens zero": misfit(max_completion_tokens=0),
    "max_completion_tokens too high": misfit(max_completion_tokens=131_073),
    "max_completion_tokens enormous": misfit(max_completion_tokens=10**400),
    "n zero": misfit(n=0),
    "n negative": misfit(n=-1),
    "n too high": misfit(n=129),
    "n enormous": misfit(n=2**64),
    "n a text": misfit(n="2"),
    "n false": misfit(n=False),
    # the rest of a chat
    "stop a number": misfit(stop=1),
    "stop an object": misfit(stop={CANARY: 1}),
    "stop of numbers": misfit(stop=[1]),
    "too many stops": misfit(stop=[CANARY] * 17),
    "a stop that is long": misfit(stop=CANARY * 50),
    "a stop that is long among others": misfit(stop=["a", CANARY * 50]),
    "stream a text": misfit(stream="true"),
    "stream a number": misfit(stream=1),
    "stream_options a text": misfit(stream_options=CANARY),
    "stream_options a list": misfit(stream_options=[]),
    "include_usage a text": misfit(stream_options={"include_usage": CANARY}),
    "tools an object": misfit(tools={}),
    "tools of texts": misfit(tools=[CANARY]),
    "too many tools": misfit(tools=[{}] * 513),
    "response_format a text": misfit(response_format="json_object"),
    "response_format a list": misfit(response_format=[CANARY]),
    "user a number": misfit(user=1),
    "user that is long": misfit(user=CANARY * 20),
    "an infinity in an unknown field": hello('"new": [{"deep": -1e999}]'),
    # models
    "model a number": misfit(model=4),
    "model a list": misfit(model=["demo"]),
    "model empty": misfit(model=""),
    "model that is long": misfit(model=CANARY * 10),
    "model that is not there": unknown(CANARY),
    "model that is a path": unknown("../../etc/passwd"),
    "model that is an address": unknown("http://127.0.0.1/"),
    "model of a provider, not of the table": unknown("openai/gpt-4o"),
    "model with a newline": unknown("demo\n"),
    "model with a NUL": unknown("demo\0"),
    "model in capitals": unknown("DEMO"),
    "model that means all": unknown("*"),
    # tools and schemas that the demo model can't read
    "a tool's count that is a text": unreadable(
        tools=[{"function": {"parameters": {"type": "array", "minItems": CANARY}}}]
    ),
    "a tool choice that is a text": unreadable(tools=[{"function": {}}], tool_choice={"function": CANARY}),
    "a schema's bound that is null": unreadable(
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "integer", "minimum": None}}}
    ),
    # embeddings
    "embeddings of nothing": said(422, "invalid_request", {}, EMBEDDINGS),
    "embeddings of null": unfit_input(None),
    "embeddings of a number": unfit_input(1),
    "embeddings of true": unfit_input(True),
    "embeddings of an object": unfit_input({CANARY: CANARY}),
    "embeddings of an empty list": unfit_input([]),
    "embeddings of objects": unfit_input([{CANARY: 1}]),
    "embeddings of texts and numbers": unfit_input([CANARY, 1]),
    "embeddings of fractions": unfit_input([1.5]),
    "embeddings of truths": unfit_input([True]),
    "embeddings of lists of texts": unfit_input([[CANARY]]),
    "embeddings of lists of lists": unfit_input([[[1]]]),
    "too many embeddings": unfit_input(["a"] * 2049),
    "embeddings of too many tokens": unfit_input([1] * 8193),
    "embeddings in an unknown format": unfit_input("x", encoding_format=CANARY),
    "embeddings of no dimension": unfit_input("x", dimensions=0),
    "embeddings of half a dimension": unfit_input("x", dimensions=0.5),
    "embeddings for a long user": unfit_input("x", user=CANARY * 20),
    "embeddings by no such model": said(404, "model_not_found", {"input": "x", "model": CANARY}, EMBEDDINGS),
    "embeddings by a model that is a number": unfit_input("x", model=1),
    # sizes
    "a body that is too large": text(413, "request_too_large", b" " * (LIMIT + 1)),
    "a body that is too large, of embeddings": text(413, "request_too_large", b"x" * (LIMIT + 1), EMBEDDINGS),
}

PLAIN = json.dumps({"messages": HELLO}).encode()


def headed(status: int, code: str | None, **headers: str | bytes | None) -> Bad:
    return Bad(status, code, body=PLAIN, headers={name.replace("_", "-"): value for name, value in headers.items()})


BAD |= {
    # Content-Type
    "no media type": headed(415, "unsupported_media_type", Content_Type=None),
    "an empty media type": headed(415, "unsupported_media_type", Content_Type=""),
    "text": headed(415, "unsupported_media_type", Content_Type="text/plain"),
    "a form's media type": headed(415, "unsupported_media_type", Content_Type="application/x-www-form-urlencoded"),
    "an upload's media type": headed(415, "unsupported_media_type", Content_Type="multipart/form-data; boundary=x"),
    "text that says JSON": headed(415, "unsupported_media_type", Content_Type="text/json"),
    "a media type that begins like JSON": headed(415, "unsupported_media_type", Content_Type="application/jsonx"),
    "JSON in second place": headed(415, "unsupported_media_type", Content_Type="text/plain; application/json"),
    "any media type": headed(415, "unsupported_media_type", Content_Type="*/*"),
    "a media type that is no text": headed(415, "unsupported_media_type", Content_Type=b"\xff\xfe"),
    "a media type that is long": headed(415, "unsupported_media_type", Content_Type=CANARY * 100),
    # Authorization
    "no key": headed(401, "invalid_api_key", Authorization=None),
    "an empty key": headed(401, "invalid_api_key", Authorization=""),
    "a scheme without a key": headed(401, "invalid_api_key", Authorization="Bearer"),
    "a scheme and a blank": headed(401, "invalid_api_key", Authorization="Bearer "),
    "a wrong key": headed(401, "invalid_api_key", Authorization=f"Bearer {CANARY}"),
    "a key and more": headed(401, "invalid_api_key", Authorization="Bearer sk-app-test x"),
    "a key in quotes": headed(401, "invalid_api_key", Authorization='Bearer "sk-app-test"'),
    "a key without a scheme": headed(401, "invalid_api_key", Authorization="sk-app-test"),
    "a key by Basic": headed(401, "invalid_api_key", Authorization="Basic c2stYXBwLXRlc3Q6"),
    "a key by Digest": headed(401, "invalid_api_key", Authorization="Digest sk-app-test"),
    "two keys": headed(401, "invalid_api_key", Authorization="Bearer sk-app-test, Bearer sk-app-test"),
    "a key that is no text": headed(401, "invalid_api_key", Authorization=b"Bearer \xff\xfe\x80"),
    "a key that is long": headed(401, "invalid_api_key", Authorization="Bearer " + CANARY * 1000),
    "a key that looks like a token": headed(401, "invalid_api_key", Authorization="Bearer a.b.c"),
    "a key in another header": headed(401, "invalid_api_key", Authorization=None, Api_Key="sk-app-test"),
    "a key that is its own hash": headed(
        401, "invalid_api_key", Authorization=f"Bearer {hashlib.sha256(b'sk-app-test').hexdigest()}"
    ),
    # sizes
    "one header that is too large": headed(431, "request_too_large", X_Large="x" * 70_000),
    "one header of 300 kB": headed(431, "request_too_large", X_Large="x" * 300_000),
    "many headers that are too large": headed(
        431, "request_too_large", **{f"X_{number}": "x" * 700 for number in range(100)}
    ),
    "a cookie that is too large": headed(431, "request_too_large", Cookie="x" * 70_000),
    "a path that is too long": Bad(431, "request_too_large", "GET", "/" + "x" * 65_500),
    "a query that is too long": Bad(431, "request_too_large", "GET", f"{MODELS}?{'x' * 65_500}"),
    "a path that is too long for the parser": Bad(431, "request_too_large", "GET", "/" + "x" * 70_000),
    "health with a header that is too large": Bad(
        431, "request_too_large", "GET", "/health", headers={"X-Large": "x" * 70_000}
    ),
    # headers that do no harm
    "a request id that could forge a line": headed(400, "invalid_request", X_Request_ID=b"a\x1b[31mb"),
    "a request id that is no text": headed(200, None, X_Request_ID=b"\xe4"),
    "a request id that is long": headed(200, None, X_Request_ID="x" * 50_000),
    "an origin that is none": headed(200, None, Origin="null"),
    "a host of somebody else": headed(200, None, Host="evil.example"),
    "another method by a header": headed(200, None, X_HTTP_Method_Override="DELETE"),
    "another path by a header": headed(200, None, X_Original_URL="/metrics", X_Rewrite_URL="/metrics"),
    "an encoding that nobody has": headed(200, None, Accept_Encoding=CANARY),
    "an answer of another kind": headed(200, None, Accept="text/html"),
    "a trace that is none": headed(200, None, traceparent=CANARY),
    "a range": headed(200, None, Range="bytes=0-18446744073709551615"),
    "a forwarded peer": headed(200, None, X_Forwarded_For="127.0.0.1"),
    # who may read the numbers
    **{
        f"metrics for the host {host!r}": Bad(403, "not_allowed", "GET", "/metrics", headers={"Host": host})
        for host in ("[", "[::1", "a]b", b"\xff", "evil.example")
    },
    **{
        f"metrics for the origin {origin!r}": Bad(403, "not_allowed", "GET", "/metrics", headers={"Origin": origin})
        for origin in ("http://[", "https://evil.example", b"\xff")
    },
    # a body that says to be compressed
    "a compressed body": Bad(400, "invalid_json", body=b"\x1f\x8b\x08\x00", headers={"Content-Encoding": "gzip"}),
}


def get(status: int, code: str | None, path: str) -> Bad:
    return Bad(status, code, "GET", path)


BAD |= {
    # paths
    "nothing there": get(404, "not_found", f"/{CANARY}"),
    "the root": get(404, "not_found", "/"),
    "an older version": get(404, "not_found", "/v0/models"),
    "a slash at the end": Bad(404, "not_found", path=CHAT + "/", body=PLAIN),
    "two slashes": Bad(404, "not_found", path="//v1/chat/completions", body=PLAIN),
    "capitals": Bad(404, "not_found", path="/V1/CHAT/COMPLETIONS", body=PLAIN),
    "an API that is not served": Bad(404, "not_found", path="/v1/audio/speech", body=PLAIN),
    "an older API": Bad(404, "unknown_endpoint", path="/v1/completions", body=PLAIN),
    "files": get(404, "not_found", "/v1/files"),
    "up and out": get(404, "not_found", "/../../etc/passwd"),
    "up and out, encoded": get(404, "not_found", "/%2e%2e/%2e%2e/etc/passwd"),
    "up and out of the playground": get(404, "not_found", "/playground/../config.py"),
    "up and out of the playground, encoded": get(404, "not_found", "/playground/..%2f..%2fconfig.py"),
    "a file of the app": get(404, "not_found", "/app/settings.toml"),
    "secrets": get(404, "not_found", "/.env"),
    "a repository": get(404, "not_found", "/.git/config"),
    "the documentation": get(404, "not_found", "/docs"),
    "its source": get(404, "not_found", "/openapi.json"),
    "the playground": get(404, "not_found", "/playground"),
    "a NUL": get(404, "not_found", "/%00"),
    "a newline": get(404, "not_found", "/%0d%0aX-Injected:%20yes"),
    "broken encoding": get(404, "not_found", "/%zz%"),
    "no UTF-8": get(404, "not_found", "/%ff%fe"),
    "a slash that is overlong": get(404, "not_found", "/%c0%af"),
    "a template": get(404, "not_found", "/{" + "{7*7}}"),
    "a script": get(404, "not_found", "/<script>alert(1)</script>"),
    "a semicolon": get(404, "not_found", "/v1/models;x=1"),
    "a model that is not there": get(404, "model_not_found", f"{MODELS}/{CANARY}"),
    "a model up and out": get(404, "model_not_found", f"{MODELS}/../../etc/passwd"),
    "a model with a NUL": get(404, "model_not_found", f"{MODELS}/demo%00"),
    "a model with a newline": get(404, "not_found", f"{MODELS}/de%0amo"),
    "a model by no name": get(404, "model_not_found", f"{MODELS}/"),
    "a model by a long name": get(404, "model_not_found", f"{MODELS}/{CANARY * 1000}"),
    # parameters, which nothing takes
    "a parameter": get(200, None, f"{MODELS}?limit={CANARY}"),
    "a parameter twice": get(200, None, f"{MODELS}?a=1&a=2"),
    "a parameter without a name": get(200, None, f"{MODELS}?=&&="),
    "a parameter in broken encoding": get(200, None, f"{MODELS}?x=%zz%ff"),
    "a key in the query": Bad(
        401, "invalid_api_key", "GET", f"{MODELS}?api_key=sk-app-test", headers={"Authorization": None}
    ),
    "a stream by the query": Bad(200, None, path=f"{CHAT}?stream=true", body=PLAIN),
    "a body by the query": Bad(422, "invalid_request", path=f"{CHAT}?messages=x", body=b"{}"),
    "many parameters": get(200, None, f"{MODELS}?{'&'.join(f'p{i}={i}' for i in range(2000))}"),
}

ALLOWED = {CHAT: "POST", EMBEDDINGS: "POST", MODELS: "GET", f"{MODELS}/demo": "GET", "/health": "GET", "/ready": "GET"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "PROPFIND")
BAD |= {
    f"{method} {path}": Bad(405, "method_not_allowed", method, path)
    for path, allowed in ALLOWED.items()
    for method in METHODS
    if method != allowed and (method, path) not in (("HEAD", "/health"), ("HEAD", "/ready"))
}

HEAD = b"Host: localhost\r\nAuthorization: Bearer sk-app-test\r\nConnection: close\r\n"
POST = f"POST {CHAT} HTTP/1.1\r\n".encode() + HEAD + b"Content-Type: application/json\r\n"
GET = f"GET {MODELS} HTTP/1.1\r\n".encode() + HEAD
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

RAW: dict[str, tuple[int, bytes]] = {
    # What the parser refuses.
    "no HTTP": (400, bytes(range(1, 256))),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/9.9": (400, b"GET /health HTTP/9.9\r\n" + HEAD + b"\r\n"),
    "a line that is cut": (400, b"GET\r\n\r\n"),
    "a method that nobody has": (400, b"HELLO /health HTTP/1.1\r\n" + HEAD + b"\r\n"),
    "a method in lower case": (400, b"get /health HTTP/1.1\r\n" + HEAD + b"\r\n"),
    "a tunnel": (400, b"CONNECT evil.example:443 HTTP/1.1\r\n" + HEAD + b"\r\n"),
    "a path without its slash": (400, b"GET health HTTP/1.1\r\n" + HEAD + b"\r\n"),
    "a blank in a path": (400, b"GET /a b HTTP/1.1\r\n" + HEAD + b"\r\n"),
    "a control character in a path": (400, b"GET /\x01 HTTP/1.1\r\n" + HEAD + b"\r\n"),
    "a raw byte in a path": (400, b"GET /\xff HTTP/1.1\r\n" + HEAD + b"\r\n"),
    "lines that end in LF": (400, b"GET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n"),
    "a header without a name": (400, GET + b": x\r\n\r\n"),
    "a header without a colon": (400, GET + b"Broken\r\n\r\n"),
    "a header with a blank before its colon": (400, GET + b"X-A : 1\r\n\r\n"),
    "a header on two lines": (400, GET + b"X-A: 1\r\n  2\r\n\r\n"),
    "a header with a NUL": (400, GET + b"X-A: \x00\r\n\r\n"),
    "a header with a bare CR": (400, GET + b"X-A: 1\rX-B: 2\r\n\r\n"),
    # Two readings of where a body ends, by which one request is smuggled in another.
    "two lengths": (400, POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
    "a length and chunks": (400, POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a length that is negative": (400, POST + b"Content-Length: -1\r\n\r\n"),
    "a length with a plus": (400, POST + b"Content-Length: +2\r\n\r\n{}"),
    "a length that is no number": (400, POST + b"Content-Length: two\r\n\r\n{}"),
    "a length beyond numbers": (400, POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}"),
    "a length of nearly everything": (413, POST + b"Content-Length: 999999999999\r\n\r\n{}"),
    "a chunk of no size": (400, CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    "a chunk of a negative size": (400, CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is longer than its size": (400, CHUNKED + b"1\r\n{}\r\n0\r\n\r\n"),
    "chunks that are too much": (413, CHUNKED + b"%x\r\n%b\r\n" % (LIMIT + 1, b" " * (LIMIT + 1))),
    "an unknown transfer around chunks": (
        400,
        POST + b"Transfer-Encoding: xchunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ),
    "chunks of HTTP/1.0": (400, CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"2\r\n{}\r\n0\r\n\r\n"),
    "another transfer": (400, POST + b"Transfer-Encoding: gzip\r\n\r\n{}"),
    "another transfer and a length": (400, POST + b"Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{}"),
    "chunks behind a blank": (400, POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    "a key in a trailer": (401, CHUNKED.replace(b"sk-app-test", b"x") + b"2\r\n{}\r\n0\r\nAuthorization: x\r\n\r\n"),
    # What only looks strange.
    "no chunks": (400, CHUNKED + b"0\r\n\r\n"),
    "an asterisk": (404, b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n"),
    "no host": (400, GET.replace(b"Host: localhost\r\n", b"") + b"\r\n"),
    "two keys, the first one wrong": (401, GET.replace(b"Bearer", b"Bearer x\r\nAuthorization: Bearer") + b"\r\n"),
    "a body where none is read": (200, GET + b"Content-Length: 2\r\n\r\n{}"),
    "a change to WebSocket": (200, GET + b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"),
    "a change to HTTP/2": (200, GET + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n\r\n"),
    "2,000 headers": (200, GET + b"".join(b"X-%d: 1\r\n" % number for number in range(2000)) + b"\r\n"),
}
