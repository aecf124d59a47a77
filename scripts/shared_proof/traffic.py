"""The clients: a balancer that goes from home to home, requests as fast as they can, probes of health."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle

import httpx2
import openai
import trio
from installation import Home, Installation

PATIENCE = 15.0
"""Seconds after which a request counts as one that hangs."""
PROBE_SECONDS = 5.0
CLIENTS = 6


class Balancer(httpx2.AsyncBaseTransport):
    """Sends each request to the next home, over one connection pool."""

    def __init__(self, homes: list[Home]) -> None:
        self._inner = httpx2.AsyncHTTPTransport()
        self._urls = cycle([httpx2.URL(home.url) for home in homes])

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = next(self._urls)
        request.url = request.url.copy_with(host=url.host, port=url.port)
        request.headers["host"] = f"{url.host}:{url.port}"
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def sdk(it: Installation, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """Return OpenAI's SDK, whose requests go to both homes in turn."""
    async with httpx2.AsyncClient(transport=Balancer(it.homes)) as client:
        yield openai.AsyncOpenAI(
            http_client=client, base_url="http://balancer/v1", api_key=key, max_retries=0, timeout=PATIENCE
        )


class Hammer:
    """Requests of one key to both homes, one after the other for each of some clients."""

    def __init__(self, it: Installation, key: str, model: str = "qwen-plus") -> None:
        self.outcomes: Counter[str] = Counter()
        self.began = self.seconds = 0.0
        self._it = it
        self._key = key
        self._model = model
        self._first = len(it.emulator.requests)

    @property
    def granted(self) -> int:
        """Requests that reached the model, whether or not the client saw the answer."""
        return sum(
            r.body is not None and r.path.endswith("/chat/completions")
            for r in self._it.emulator.requests[self._first :]
        )

    async def run(self, seconds: float, pause: float = 0.0) -> None:
        """Send requests for some seconds."""
        self.began = trio.current_time()
        http_client = httpx2.AsyncClient(transport=Balancer(self._it.homes), timeout=PATIENCE)
        async with http_client as client, trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._client, client, self.began + seconds, pause)
        self.seconds = trio.current_time() - self.began

    async def _client(self, client: httpx2.AsyncClient, end: float, pause: float) -> None:
        body = {"model": self._model, "messages": [{"role": "user", "content": "Hello"}]}
        head = {"authorization": f"Bearer {self._key}"}
        while trio.current_time() < end:
            try:
                response = await client.post("http://balancer/v1/chat/completions", json=body, headers=head)
                self.outcomes[outcome_of(response)] += 1
            except httpx2.TimeoutException:
                self.outcomes["hangs"] += 1
            except httpx2.HTTPError:
                self.outcomes["no answer"] += 1
                await trio.sleep(0.05)
            await trio.sleep(pause)


def outcome_of(response: httpx2.Response) -> str:
    """Return a status, with its code, or what is wrong with its body."""
    try:
        body = response.json()
    except ValueError:
        return f"{response.status_code} without JSON"
    if response.status_code == 200:
        return "200" if body.get("choices") else "200 without choices"
    error = body.get("error", {})
    if not (isinstance(error.get("message"), str) and "type" in error and "code" in error):
        return f"{response.status_code} of another shape"
    return f"{response.status_code} {error['code']}"


class Probes:
    """What the health checks of both homes answer all the time."""

    def __init__(self, it: Installation) -> None:
        self.failures: Counter[str] = Counter()
        self.count = 0
        self._it = it

    async def run(self) -> None:
        """Probe until cancelled."""
        async with httpx2.AsyncClient(timeout=PROBE_SECONDS) as client:
            while True:
                for home in self._it.homes:
                    for path in ("/readyz", "/livez"):
                        if not home.is_killed:
                            await self._probe(client, home, path)
                await trio.sleep(0.2)

    async def _probe(self, client: httpx2.AsyncClient, home: Home, path: str) -> None:
        self.count += 1
        try:
            response = await client.get(home.url + path)
            if response.status_code != 200:
                self.failures[f"{path} {response.status_code} {response.text[:80]}"] += 1
        except httpx2.HTTPError as error:
            if not home.is_killed:
                self.failures[f"{path} {type(error).__name__}"] += 1
