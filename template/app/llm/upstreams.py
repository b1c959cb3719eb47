"""What all calls share: the model table, the adapters, limits, retries and metrics."""

import os
from collections.abc import Callable, Mapping
from typing import Self

from app.access.limits import Limiter, warn_of_budgets
from app.config import Settings
from app.llm.accounting import Accounting
from app.llm.adapter import Adapter, ChatAdapter
from app.llm.bridge import Bridge
from app.llm.demo import Demo
from app.llm.direct import Direct
from app.llm.native import Native
from app.llm.own_adapter import Answer, Own
from app.llm.retries import Retries
from app.llm.targets import AdapterName, Target, resolve
from app.llm.translator import Translator
from app.llm.via_litellm import ViaLiteLLM
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Tracing

SHORTEST_KEY = 6
"""Characters of a key that is a secret; a shorter one is a word, such as `none`."""


class Upstreams:
    """The models of the table. Calls are made while its context is entered (`async with`).

    One serves the whole application. It remembers no call, only counts for limits and circuit breakers.

    Args:
        settings: the model table, time limits and retries.
        environ: where the providers' keys are looked up.
        metrics: counts every call; None makes some that nobody reads.
        own: makes the functions behind `own/` names, given these upstreams.

    Raises:
        SettingsError: a row of the model table can't work.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] = os.environ,
        metrics: Metrics | None = None,
        own: Callable[["Upstreams"], Mapping[str, Answer]] = lambda _: {},
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        targets = {name: _target(name, settings, environ) for name in settings.models}
        ways = [way for target in targets.values() for way in (target, target.native) if way]
        secrets = frozenset(key for way in ways if len(key := way.key or "") >= SHORTEST_KEY)
        self.targets = {name: target.with_secrets(secrets) for name, target in targets.items()}
        self.limiter = Limiter(settings, self.metrics)
        self.accounting = Accounting(self.limiter, self.metrics, Tracing() if settings.telemetry else None)
        self.retries = Retries(self.targets, settings.retries, self.metrics, self.accounting.admit_again)
        functions = own(self)
        self.native = Native(settings.timeouts, traced=settings.telemetry)
        names = {target.adapter for target in self.targets.values()}
        self.adapters = {name: self._adapter(name, functions) for name in names}

    async def __aenter__(self) -> Self:
        """Open what the adapters need. LiteLLM goes on loading in a thread; `failing` tells when it is there."""
        warn_of_budgets(self.settings)
        for adapter in (*self.adapters.values(), self.native):
            await adapter.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        for adapter in (*self.adapters.values(), self.native):
            await adapter.close()
        if self.limiter.storage.shared:
            await self.limiter.storage.shared.close()

    def translated(self, adapter: ChatAdapter, target: Target, translator: Translator) -> ChatAdapter:
        """Return the adapter that answers another dialect: passed through where the target speaks it, else bridged."""
        return self.native if translator.dialect in target.speaks else Bridge(adapter, translator)

    def failing(self) -> list[str]:
        """Return what is not ready yet, one sentence each."""
        return [sentence for adapter in self.adapters.values() for sentence in adapter.failing()]

    def _adapter(self, name: AdapterName, functions: Mapping[str, Answer]) -> Adapter:
        timeouts, traced = self.settings.timeouts, self.settings.telemetry
        targets = [target for target in self.targets.values() if target.adapter == name]
        if name == "direct":
            return Direct(timeouts, traced=traced)
        if name == "litellm":
            return ViaLiteLLM(targets, timeouts, self.settings.image_hosts, traced=traced)
        return Own(functions, targets) if name == "own" else Demo()


def _target(name: str, settings: Settings, environ: Mapping[str, str]) -> Target:
    """Return the target of a model, with the bounds of its answers."""
    entry, bound = settings.models[name], settings.max_tokens_limit
    is_set = entry.max_tokens_limit or "max_tokens_limit" in settings.model_fields_set
    target = resolve(name, entry.model_copy(update={"max_tokens_limit": entry.max_tokens_limit or bound}), environ)
    # What a budget reserves is then the most that an answer can cost. A model for embeddings has no price of answers.
    return target.bounded() if is_set and entry.price and entry.price.output is not None else target
