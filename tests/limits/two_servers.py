"""Two processes of the service that share one real Valkey, and callers by the hundred."""

import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp

from operations.servers import Process, accepts, free_port, valkey_server, wait_until

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}


class Valkey:
    """A Valkey that can be killed, stopped and brought back; a context manager.

    Args:
        folder: where it runs.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder

    def __enter__(self) -> Self:
        command = (valkey_server(), "--port", str(self.port), "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL)
        wait_until(lambda: accepts(self.port))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def fail(self, number: signal.Signals) -> None:
        """End it, or stop it."""
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    def heal(self) -> None:
        """Bring it back, empty if it was killed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
        else:
            self.__enter__()


@dataclass
class Answers:
    """What came back.

    Attributes:
        statuses: how often which status.
        slowest: seconds of the slowest answer.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0


@contextlib.contextmanager
def two_servers(
    valkey: Valkey, stub: Any = None, *, table: Any = None, settings: Any = None, **callers: dict[str, Any]
) -> Iterator[list[Any]]:
    """Run two processes with these callers, whose keys are their names.

    The models are those of the table that is given, else one of the stub, else the demo's.
    """
    models = table or {
        "m": {"upstream": "openai/m", "api_base": f"{stub.url}/v1"} if stub else {"upstream": "demo/echo"}
    }
    rows = {name: {"key_sha256": hashlib.sha256(name.encode()).hexdigest()} | row for name, row in callers.items()}
    env = {
        "APP_LIMIT_STORAGE": f"async+valkey://127.0.0.1:{valkey.port}",
        "APP_CALLERS": json.dumps(rows),
        "APP_MODELS": json.dumps(models),
        "APP_DEFAULT_MODEL": "m",
        "APP_LOG_FORMAT": "json",
    } | {f"APP_{name.upper()}": json.dumps(value) for name, value in (settings or {}).items()}
    with Process(env=env) as one, Process(env=env) as other:
        yield [one, other]


def run(work: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Run a client's work, with as many connections as it likes."""

    async def session() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as client:
            await work(client)

    asyncio.run(session())


async def ask(client: aiohttp.ClientSession, url: str, key: str, answers: Answers) -> None:
    """Ask once; note what came back."""
    began = asyncio.get_running_loop().time()
    async with client.post(url + CHAT, json=ASKED, headers={"Authorization": f"Bearer {key}"}) as answer:
        await answer.read()
        answers.statuses[answer.status] += 1
    answers.slowest = max(answers.slowest, asyncio.get_running_loop().time() - began)


async def ask_all_at_once(client: aiohttp.ClientSession, servers: list[Any], key: str, calls: int) -> Answers:
    """Ask all servers in turn, all calls at once."""
    answers = Answers()
    await asyncio.gather(*(ask(client, servers[number % len(servers)].url, key, answers) for number in range(calls)))
    return answers


async def open_stream(
    streams: contextlib.AsyncExitStack, client: aiohttp.ClientSession, url: str, key: str, answers: Answers
) -> aiohttp.ClientResponse:
    """Open a stream that stays open; note its status."""
    asking = client.post(url + CHAT, json=ASKED | {"stream": True}, headers={"Authorization": f"Bearer {key}"})
    answer = await streams.enter_async_context(asking)
    answers.statuses[answer.status] += 1
    return answer


async def cost_of_a_stream(client: aiohttp.ClientSession, url: str, key: str) -> int:
    """Return the tokens that a stream reserves."""
    async with contextlib.AsyncExitStack() as streams:
        headers = (await open_stream(streams, client, url, key, Answers())).headers
        return int(headers["x-ratelimit-limit-tokens"]) - int(headers["x-ratelimit-remaining-tokens"])


async def readiness(client: aiohttp.ClientSession, servers: list[Any]) -> list[tuple[int, bool]]:
    """Return the status of each server's `/ready`, and whether it calls itself degraded."""
    found = []
    for server in servers:
        async with client.get(f"{server.url}/ready") as answer:
            found.append((answer.status, "degraded" in await answer.json()))
    return found
