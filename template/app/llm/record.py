"""What became of the calls of one request: for the log line, the metrics and the response's headers."""

from dataclasses import dataclass, field

from app.llm.targets import Target


@dataclass(slots=True)
class CallRecord:
    """Filled in while a call goes on.

    Attributes:
        caller: the caller's name.
        model: public name of the model that answered, or was tried last.
        path: public names in the order in which they were tried.
        prompt_tokens: tokens in, as the provider counted.
        completion_tokens: tokens out.
        answered_by: the target that answered.
        response_model: the provider's name of it.
        finish_reasons: why the answer ended, a reason for each choice.
        headers: response headers that the call brings.
    """

    caller: str | None = None
    model: str | None = None
    path: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    answered_by: Target | None = None
    response_model: str | None = None
    finish_reasons: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def tries(self, target: Target) -> None:
        """Note that a model is tried."""
        self.answered_by = target
        self.model = target.name
        self.path.append(target.name)
