"""Two replicas behind nginx, as docs/scaling.md sets it up, are restarted one after the other: no stream is lost."""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from operations.servers import TEXT, Behaviour, Process, Program, Stub, accepts, free_port, program, session, text_of
from workspace import ROOT

STREAMS = 100
REPEAT, PACE = 4, 0.1
"""How often the provider says its text, and the seconds between two words."""
LENGTH = REPEAT * len(TEXT.split()) * PACE
"""About the seconds that a stream takes."""


@contextlib.contextmanager
def nginx(folder: Path, replicas: list[int]) -> Iterator[str]:
    """Run nginx by the documented configuration; yield its base URL."""
    port = free_port()
    [documented] = re.findall(
        r"^```nginx\n(.*?)^```", (ROOT / "template/docs/scaling.md").read_text(), re.MULTILINE | re.DOTALL
    )
    for written, ours in (
        ("listen 8080", f"listen 127.0.0.1:{port}"),
        (":8001", f":{replicas[0]}"),
        (":8002", f":{replicas[1]}"),
    ):
        assert documented.count(written) == 1
        documented = documented.replace(written, ours)
    paths = "".join(f"{kind}_temp_path {folder};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"user root;\nworker_processes 1;\ndaemon off;\npid {folder}/pid;\nerror_log stderr warn;\n"
        f"events {{ worker_connections 2048; }}\nhttp {{\naccess_log off;\n{paths}{documented}}}\n"
    )
    command = (program("nginx"), "-p", folder, "-c", configuration)
    with Program(*command, ready=lambda: accepts(port), cwd=folder):
        yield f"http://127.0.0.1:{port}"


class Crowd:
    """Callers who open one stream after another.

    Attributes:
        ends: how the streams ended: `whole`, `503` with a Retry-After before the first byte, or anything else.
        leaving: set it, and nobody opens another.
        open: how many are open.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.ends: Counter[str] = Counter()
        self.leaving = False
        self.open = 0

    async def call_until_told(self, client: aiohttp.ClientSession, *, after: float) -> None:
        await asyncio.sleep(after)
        while not self.leaving:
            self.open += 1
            try:
                end = await self._stream(client)
            except (aiohttp.ClientError, TimeoutError, AssertionError) as error:
                end = f"{type(error).__name__}: {error}"
            self.open -= 1
            self.ends[end] += 1
            if end != "whole":
                await asyncio.sleep(0.2)

    async def _stream(self, client: aiohttp.ClientSession) -> str:
        body = {"model": "spare", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"Authorization": f"Bearer {session.KEYS['web']}"}
        async with client.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as response:
            text = await response.text()
            if response.status == 503 and "Retry-After" in response.headers:
                return "503"
            assert response.status == 200, f"{response.status} {text[:200]}"
            said = text_of([event for event in text.split("\n\n") if event])
            return "whole" if said == TEXT * REPEAT else f"not whole: {text[-200:]}"


@contextlib.contextmanager
def replica(stub: Any, port: int) -> Iterator[Any]:
    env = {f"APP_{name.upper()}": json.dumps(value) for name, value in session.settings(stub).items()}
    env |= {"APP_DEFAULT_MODEL": "main", "APP_PORT": str(port)}
    with Process(env=env, ready=False) as process:
        process.port = port
        process.url = f"http://127.0.0.1:{port}"
        process.wait_until_ready()
        yield process


def test_a_rolling_restart_under_load_loses_no_stream(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    with Stub(Behaviour(repeat=REPEAT, pace=PACE)) as stub, contextlib.ExitStack() as running:
        replicas = [running.enter_context(replica(stub, port)) for port in ports]
        crowd = Crowd(running.enter_context(nginx(tmp_path, ports)))

        async def restart(number: int) -> None:
            old = replicas[number]
            old.terminate()
            assert await asyncio.to_thread(old.wait, 60) == 0
            replicas[number] = await asyncio.to_thread(running.enter_context, replica(stub, ports[number]))

        async def play() -> None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as client:
                callers = [
                    asyncio.create_task(crowd.call_until_told(client, after=LENGTH * number / STREAMS))
                    for number in range(STREAMS)
                ]
                for number in range(2):
                    await asyncio.sleep(LENGTH)
                    assert crowd.open >= 0.9 * STREAMS
                    await restart(number)
                crowd.leaving = True
                await asyncio.gather(*callers)

        asyncio.run(play())
        for process in replicas:
            process.terminate()
            assert process.wait(30) == 0
    assert set(crowd.ends) <= {"whole", "503"}, crowd.ends
    assert crowd.ends["whole"] >= 2 * STREAMS
