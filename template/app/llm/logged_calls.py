"""Calls outside a request, each with a log line of its own: no request's line sums them up."""

import structlog

from app.llm.call import Call, CallTotals
from app.quotas import MICRO

log = structlog.get_logger("app.calls")


class LoggedCalls(CallTotals):
    """Writes a log line for each call that has ended."""

    def add(self, call: Call) -> None:
        """Log a call. Nothing is summed up: a client of the application's own may live as long as it does."""
        log.info(
            "call",
            caller=call.caller_name,
            model=call.answered_by.name,
            tokens_in=call.prompt_tokens,
            tokens_out=call.completion_tokens,
            **({} if call.cost is None else {"cost_usd": call.cost / MICRO}),
            tried=[target.name for target in call.tried],
            finish_reasons=call.finish_reasons,
        )
