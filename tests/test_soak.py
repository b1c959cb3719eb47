"""Many calls, with every fault of providers and clients, leave nothing behind, and every line of the log is JSON.

CI makes 4,000 of them, the nightly workflow (`FULL_MATRIX`) 20,000.
"""

import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import random
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import copier
import pytest

from operations.servers import Behaviour, Program, Stub, answers, free_port
from workspace import FULL_MATRIX

CALLS = 20_000 if FULL_MATRIX else 4_000
AT_ONCE = 32
SEED = 20_000
PATIENCE = 30
"""Seconds within which every call ends, however its provider behaves."""
SETTLING = 60
"""Seconds in which a server without calls lets go of everything."""
LEAVING = 0.1
"""Share of the calls whose client leaves before the end."""
KEY = "sk-app-test"
HELLO = [{"role": "user", "content": "Hello"}]
MODELS = {"direct": 60, "retried": 10, "litellm": 12, "anthropic": 8, "demo": 2, "limited": 4}
"""What is asked, and how often."""
MEMORY = 30_000_000
"""Bytes, generous, by which a server may grow that has found its size."""
KINDS = ("whole", "stream")

faults: Any = importlib.import_module("tests.template.faults")
LEGAL = [one for name, one in faults.LEGAL_VARIANTS.items() if name != "huge chunks"]
FAULTS = list(faults.FAULTS.values())
TEXTS = {one.said for one in (Behaviour(), *LEGAL)} | {"You said: Hello"}

OWN = '''"""Tells which tasks there are."""

import asyncio
from collections import Counter

from fastapi import APIRouter

router = APIRouter()
public_routers = [router]


@router.get("/tasks")
async def tasks() -> dict[str, int]:
    return Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())
'''


@dataclass(frozen=True)
class Held:
    """What a server holds on to: tasks, open files and calls, by name."""

    tasks: Counter[str]
    files: Counter[str]
    calls: Counter[str]

    def beyond(self, other: "Held") -> list[Counter[str]]:
        """Return what there is more of than in another."""
        more = [self.tasks - other.tasks, self.files - other.files, self.calls - other.calls]
        return [counter for counter in more if counter]


@dataclass(frozen=True)
class Server:
    """A generated project under `python -m app`, with a route of its own that tells its tasks (Linux).

    Attributes:
        url: its address.
        program: its process.
        providers: the ports on which the providers of whole answers and of streams are to listen.
    """

    url: str
    program: Program
    providers: dict[str, int]

    def held(self) -> Held:
        files: Counter[str] = Counter()
        for link in Path(f"/proc/{self.program.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                files[link.readlink().name.partition(":")[0]] += 1
        lines = (line.rpartition(" ") for line in self._get("/metrics").splitlines() if "in_flight" in line)
        calls = Counter({name: int(float(value)) for name, _, value in lines if name[0] != "#"})
        return Held(Counter(json.loads(self._get("/tasks"))), files, calls)

    @property
    def memory(self) -> int:
        """Resident memory, in bytes."""
        pages = Path(f"/proc/{self.program.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def answer(self, calls: int, rng: random.Random) -> Counter[str]:
        """Have it answer so many calls; return how often each kind of answer came.

        Its providers are there only meanwhile, so that connections that are kept alive don't count as left behind.
        """
        with ExitStack() as stack:
            stubs = {kind: stack.enter_context(Stub(port=port)) for kind, port in self.providers.items()}
            for kind, stub in stubs.items():
                stub.queue(*(behaviour(kind, rng) for _ in range(calls)))
            outcomes = asyncio.run(self._answer(calls, rng))
            for stub in stubs.values():
                assert stub.wait_until(lambda stub=stub: stub.in_flight == 0), "a call to the provider goes on"
        return outcomes

    async def _answer(self, calls: int, rng: random.Random) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        left = iter(range(calls))
        async with aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(PATIENCE)) as session:

            async def one_after_another() -> None:
                for _ in left:
                    outcomes[await outcome(session, rng)] += 1

            await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
        return outcomes

    def _get(self, path: str) -> str:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {KEY}"})  # noqa: S310 - http
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310 - the same
            text: str = response.read().decode()
        return text


@pytest.fixture
def server(source: Path, tmp_path: Path) -> Iterator[Server]:
    project = tmp_path / "project"
    copier.run_copy(str(source), project, defaults=True, quiet=True)
    (project / "app/own.py").write_text(OWN)
    port, providers = free_port(), {kind: free_port() for kind in KINDS}
    models: dict[str, Any] = {}
    for kind, provider in providers.items():
        address = f"http://127.0.0.1:{provider}"
        api = {"upstream": "openai/gpt-4o", "api_base": f"{address}/v1"}
        models |= {
            f"direct {kind}": api,
            f"retried {kind}": api | {"fallbacks": [f"direct {kind}"]},
            f"litellm {kind}": api | {"protocol": "litellm"},
            f"anthropic {kind}": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": address},
            f"demo {kind}": {"upstream": "demo/echo"},
            f"limited {kind}": {"upstream": "demo/echo", "requests_per_minute": 30, "tokens_per_minute": 100_000},
        }
    env = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OPENAI_"))} | {
        "APP_PORT": str(port),
        "APP_MODELS": json.dumps(models),
        "APP_DEFAULT_MODEL": "direct whole",
        "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest(), "metrics": True}}),
        "APP_TIMEOUTS": json.dumps({"first_token": 1, "idle": 0.5, "total": 2}),
        "APP_RETRIES": "1",
        "APP_LOG_FORMAT": "json",
    }
    url = f"http://127.0.0.1:{port}"
    ready = f"{url}/ready"
    with Program(sys.executable, "-m", "app", ready=lambda: answers(ready), cwd=project, env=env) as process:
        yield Server(url, process, providers)


def behaviour(kind: str, rng: random.Random) -> Any:
    """Return how a provider answers one request of a kind: mostly well."""
    faulty = [fault.behaviour for fault in FAULTS if kind in fault.answers and not fault.slow]
    slow = [fault.behaviour for fault in FAULTS if kind in fault.answers and fault.slow]
    [chosen] = rng.choices([[Behaviour()], LEGAL, faulty, slow], [70, 15, 14, 1])
    return rng.choice(chosen)


async def outcome(session: aiohttp.ClientSession, rng: random.Random) -> str:
    """Make one call; return what came of it, which must be a whole answer, or an error that says what it is."""
    kind = rng.choice(KINDS)
    model = rng.choices(list(MODELS), list(MODELS.values()))[0]
    body: dict[str, Any] = {"model": f"{model} {kind}", "messages": HELLO, "stream": kind == "stream"}
    path, key = "/v1/chat/completions", KEY
    match rng.randrange(20):
        case 0:
            path, body = "/v1/embeddings", {"model": "direct whole", "input": "Hello"}
        case 1:
            wrong: dict[str, Any] = rng.choice([{"model": "none"}, {"temperature": 3}, {"messages": []}])
            body |= wrong
        case 2:
            key = "sk-unknown"
    patience = rng.uniform(0, 0.1) if rng.random() < LEAVING else PATIENCE
    try:
        async with asyncio.timeout(patience):
            async with session.post(path, json=body, headers={"Authorization": f"Bearer {key}"}) as response:
                said = judged(response.status, response.content_type, await response.read())
                return "over a limit" if said == "429" and model == "limited" else said
    except TimeoutError:
        assert patience < PATIENCE, "a call hangs"
        return "the client left"


def judged(status: int, kind: str, body: bytes) -> str:
    """Return what an answer is."""
    if kind == "text/event-stream":
        *events, done, rest = body.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        assert "data: [DONE]" not in events
        chunks = [json.loads(data(event)) for event in events if data(event)]
        if "error" in chunks[-1]:
            return "a stream's error"
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert "".join(choice["delta"].get("content") or "" for choice in choices) in TEXTS
        return "a stream"
    answer = json.loads(body)
    if kind == "application/problem+json":
        assert answer["status"] == status >= 400
        assert answer["error"]["code"]
        return str(status)
    assert status == 200
    if answer["object"] == "list":
        return "embeddings"
    assert answer["content"] in TEXTS
    return "an answer"


def data(event: str) -> str:
    """Return the data of an event of one line, whatever stands beside it."""
    return "".join(line[5:] for line in event.split("\n") if line.startswith("data:"))


def settled(server: Server, before: Held) -> Held:
    """Return what a server holds as soon as that is no more than before, or when the time for that is over."""
    deadline = time.monotonic() + SETTLING
    while (held := server.held()).beyond(before) and time.monotonic() < deadline:
        time.sleep(0.2)
    return held


def test_nothing_is_left_behind(server: Server) -> None:
    rng = random.Random(SEED)  # noqa: S311 - chance, and the same one each time
    server.answer(CALLS // 5, rng)  # LiteLLM loads much of itself, and everything finds its size
    time.sleep(2)
    before, memory = server.held(), server.memory
    outcomes = server.answer(CALLS, rng)
    assert sum(outcomes.values()) == CALLS
    assert {kind for kind in outcomes if kind.isdigit()} == {"400", "401", "404", "422", "429", "502", "504"}
    assert {kind for kind in outcomes if not kind.isdigit()} == {
        *("an answer", "a stream", "a stream's error", "embeddings", "the client left", "over a limit")
    }
    assert settled(server, before).beyond(before) == []
    assert server.memory - memory < MEMORY
    lines = [json.loads(line) for line in server.program.output.splitlines()]
    assert sum(line["event"] == "request" for line in lines) > CALLS
    assert not [line for line in lines if line["event"] in ("unexpected", "uncaught")]
