"""What became of the calls of one request: for the log line, the metrics and the response's headers."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class CallRecord:
    """Filled in while a call goes on.

    Attributes:
        caller: the caller's name.
        model: public name of the model that answered, or was tried last.
        path: public names in the order in which they were tried.
        prompt_tokens: tokens in, as the provider counted.
        completion_tokens: tokens out.
        headers: response headers that the call brings.
    """

    caller: str | None = None
    model: str | None = None
    path: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    def tries(self, model: str) -> None:
        """Note that a model is tried."""
        self.model = self.headers["X-Model"] = model
        self.path.append(model)
