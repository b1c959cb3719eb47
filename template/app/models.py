"""Requests and answers in OpenAI's terms.

Only what this service uses or bounds is typed here. Every other field is kept as it came and passed on
(`extra="allow"`). Source: OpenAI's API reference, chat completions and embeddings.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

Name = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[str, Field(max_length=1024)]

ADDRESS = re.compile(r"(file(?=:/)|[a-z][a-z0-9+.-]*(?=://)):/*([^/?#]*)", re.IGNORECASE)
IGNORED_IN_ADDRESSES = re.compile(r"^[\x00-\x20]+|[\t\r\n]+")
"""Characters that URL parsers remove (WHATWG URL, section 4.4)."""
TEXT_FIELDS = ("text", "thinking", "refusal")
"""Fields of a message's part that hold text, which nobody fetches as an address."""

AS_INTEGER = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)
"""Accepts 1.0 as 1, as JSON Schema does. It must be the last annotation, or the JSON schema loses the bounds."""
Tokens = Annotated[list[Annotated[int, AS_INTEGER]], Field(min_length=1, fail_fast=True)]


class Wire(BaseModel):
    """A part of a request. Strict: no bool as a number, no NaN, no infinity."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, hide_input_in_errors=True)
    __pydantic_extra__: dict[str, JsonValue]


class Part(Wire):
    """One part of a message's content: text, image, audio, file, and what comes after them."""

    type: str = Field(max_length=64)

    @model_validator(mode="after")
    def _is_fetched_from_the_web(self) -> Self:
        if any(scheme not in ("http", "https") for scheme, _ in addresses(self.model_extra)):
            raise ValueError("images and files come from https:, http: or data: addresses")
        return self


def addresses(part: Any) -> Iterator[tuple[str, str]]:
    """Yield the scheme and host, in lower case, of every address in a message's part that a server may fetch."""
    if isinstance(part, str):
        if found := ADDRESS.match(IGNORED_IN_ADDRESSES.sub("", part[:2048])):
            yield found[1].lower(), found[2].lower()
    elif isinstance(part, dict):
        for name, value in part.items():
            if name not in TEXT_FIELDS:
                yield from addresses(value)
    elif isinstance(part, list):
        for value in part:
            yield from addresses(value)


def either(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return JSON Schema for a condition that a validator of ours checks, for the OpenAPI page."""
    return {"anyOf": [{"properties": one}, {"required": list(other), "properties": other}]}


NEEDS_CONTENT = either({"role": {"enum": ["assistant", "function"]}}, {"content": {"not": {"type": "null"}}})
NEEDS_CALL = either({"role": {"not": {"const": "tool"}}}, {"tool_call_id": {"type": "string"}})
NEEDS_STREAM = either({"stream_options": {"type": "null"}}, {"stream": {"const": True}})


class Message(Wire):
    model_config = ConfigDict(json_schema_extra={"allOf": [NEEDS_CONTENT, NEEDS_CALL]})

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(max_length=1024, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[dict[str, JsonValue]], Field(max_length=512, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    """The provider's own: any length, and empty ones."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.content is None and self.role not in ("assistant", "function"):
            raise ValueError(f"a {self.role} message needs content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a tool message needs tool_call_id")
        return self


class StreamOptions(Wire):
    include_usage: bool | None = None


class ChatRequest(Wire):
    """A request for a chat completion. Only what the caller set, and the model's `defaults`, goes to the provider."""

    model_config = ConfigDict(json_schema_extra=NEEDS_STREAM)

    model: Name | None = Field(default=None, description="A public name of the model table; left out, the default.")
    messages: list[Message] = Field(min_length=1, max_length=4096, fail_fast=True)
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="The shipped gpt-4o entry sends 0.7 if it is left out."
    )
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: Annotated[int, Field(ge=1), AS_INTEGER] | None = Field(
        default=None,
        description="At most the setting max_tokens_limit. The shipped gpt-4o entry sends 1024 if it is left out.",
    )
    max_completion_tokens: Annotated[int, Field(ge=1), AS_INTEGER] | None = None
    n: Annotated[int, Field(ge=1, le=128), AS_INTEGER] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, JsonValue]] | None = Field(default=None, max_length=512, fail_fast=True)
    response_format: dict[str, JsonValue] | None = None
    user: str | None = Field(default=None, max_length=512)

    @property
    def wants_usage(self) -> bool:
        """Whether the caller asked for a stream's usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def _or_default(default: Any) -> BeforeValidator:
    """Take a default in place of the null that some providers send."""
    return BeforeValidator(lambda value: default() if value is None else value)


def text_of(content: Any) -> Any:
    """Return the text of an answer's content: some providers send a list of parts."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


Count = Annotated[int, _or_default(int)]
Text = Annotated[str, _or_default(str)]
Content = Annotated[str | None, BeforeValidator(text_of)]


class Answered(BaseModel):
    """A part of a provider's answer. Fields that are not named here are kept, and null is a field left out."""

    model_config = ConfigDict(extra="allow")


class Usage(Answered):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0


class AssistantMessage(Answered):
    role: Annotated[str, _or_default(lambda: "assistant")] = "assistant"
    content: Content = None
    tool_calls: list[dict[str, Any]] | None = None


def as_sent(message: Any) -> Any:
    """Return a message as a request sends it: an assistant's message of an answer may go straight back."""
    if isinstance(message, AssistantMessage):
        return {"content": None, **message.model_dump(exclude_none=True)}
    return message.model_dump(exclude_unset=True) if isinstance(message, Message) else message


class Choice(Answered):
    index: Count = 0
    message: Annotated[AssistantMessage, _or_default(AssistantMessage)] = AssistantMessage()
    finish_reason: str | None = None


class ChatResponse(Answered):
    """OpenAI's `chat.completion`, and `content`: the first choice's text."""

    id: Text = ""
    object: Text = "chat.completion"
    created: Count = 0
    model: Text = ""
    choices: list[Choice]
    usage: Annotated[Usage, _or_default(Usage)] = Usage()
    content: Content = None


class Delta(Answered):
    role: str | None = None
    content: Content = None
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(Answered):
    index: Count = 0
    delta: Annotated[Delta, _or_default(Delta)] = Delta()
    finish_reason: str | None = None


class ChatChunk(Answered):
    """OpenAI's `chat.completion.chunk`, and `content`: the first choice's new text."""

    id: Text = ""
    object: Text = "chat.completion.chunk"
    created: Count = 0
    model: Text = ""
    choices: Annotated[list[ChunkChoice], _or_default(list)] = []
    usage: Usage | None = None

    @property
    def content(self) -> str:
        """The new text of the first choice; empty where a chunk brings none."""
        return (self.choices[0].delta.content or "") if self.choices else ""


class EmbeddingRequest(Wire):
    """A request for embeddings: of a text, of texts, of tokens, or of lists of tokens."""

    model: Name | None = None
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=2048, fail_fast=True)]
        | Annotated[Tokens, Field(max_length=8192)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=2048, fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=65536), AS_INTEGER] | None = None
    user: str | None = Field(default=None, max_length=512)


class Embedding(Answered):
    object: Text = "embedding"
    index: Count = 0
    embedding: list[float] | str


class EmbeddingResponse(Answered):
    """OpenAI's embeddings."""

    object: Text = "list"
    data: list[Embedding]
    model: Text = ""
    usage: Annotated[Usage, _or_default(Usage)] = Usage()

    @property
    def vectors(self) -> list[list[float]]:
        """The embeddings, in the order of the texts; without any that came in base64, as `encoding_format` asks."""
        return [row.embedding for row in self.data if isinstance(row.embedding, list)]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorMember(BaseModel):
    """OpenAI's error object, as its SDKs read it from a body or from a stream's event."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(BaseModel):
    """Every error's body: problem details (RFC 9457) with OpenAI's error object in it.

    An endpoint's own HTTPException whose detail is no text adds that detail as `details`.
    """

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: ErrorMember
