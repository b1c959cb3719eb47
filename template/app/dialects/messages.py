"""Anthropic's Messages, bridged onto chat: the request. The answer is in message_events.py.

Source: Anthropic's API reference, Messages.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, with_config
from pydantic_core import to_json
from typing_extensions import TypedDict

from app.access.estimate import OF_TOOLS
from app.dialects.chunks import counts
from app.dialects.conversation import Conversation, Part, an_object, objects, text, web_only
from app.dialects.message_events import END, MessageEvents, error_body, outlines
from app.dialects.tools import flat_name
from app.dialects.translation import Translation, hosted_choice
from app.errors import AppError
from app.llm.stream_state import StreamState
from app.models import AS_INTEGER, Name, Wire

FIELDS = {
    "messages", "system", "max_tokens", "stop_sequences", "tools", "tool_choice", "output_config", "output_format",
}  # fmt: skip
"""What is translated below."""
HINTS = {
    "betas", "cache_control", "container", "context_management", "inference_geo", "mcp_servers", "metadata",
    "service_tier", "speed", "thinking", "top_k",
}  # fmt: skip
"""What chat has no word for, and what an answer can do without."""
OTHERWISE = FIELDS | HINTS
"""What chat has not, or not by the same name. All else is passed on."""
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
SPEAKS = Literal["user", "assistant", "system"]


@with_config(Wire.model_config)
class MessageParam(TypedDict):
    role: SPEAKS
    content: str | Annotated[list[dict[str, Any]], Field(max_length=4096, fail_fast=True)]


class TokensRequest(Wire):
    """A request whose tokens are counted. What isn't named here has no bounds of its own, and is passed on."""

    model: Name | None = Field(default=None, description="A public name of the model table; left out, the default.")
    messages: Annotated[list[MessageParam], Field(min_length=1, max_length=4096, fail_fast=True)]
    system: str | Annotated[list[dict[str, Any]], Field(max_length=4096, fail_fast=True)] | None = None
    stop_sequences: Annotated[list[str], Field(max_length=64, fail_fast=True)] | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    tools: Annotated[list[dict[str, Any]], Field(max_length=512, fail_fast=True)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(TokensRequest):
    """A request for a message."""

    max_tokens: Annotated[int, Field(ge=1), AS_INTEGER]


class Messages(Translation):
    """Translates one request of the Messages API. See `app.llm.translator.Translator`."""

    dialect = "messages"
    path = "/messages"
    end = END
    history = "messages"
    needs = "content"
    bound = "max_tokens"
    of_tools = OF_TOOLS
    names: ClassVar[dict[str, str]] = {
        "max_completion_tokens": "max_tokens",
        "response_format": "output_config.format",
        "stop": "stop_sequences",
    }
    defaults = frozenset({"temperature", "top_p", "max_tokens"})

    def __init__(self, asked: TokensRequest, versions: dict[str, str] | None = None) -> None:
        super().__init__(asked, versions)
        self._names: dict[str, str] = {}

    # --- The request --------------------------------------------------------------------------------------------------

    def _fields(self) -> dict[str, Any]:
        """Return chat's fields for the request's."""
        sent = self.sent
        for name in sorted(HINTS.intersection(sent)):
            self.leave_out(name)
        fields = {name: value for name, value in sent.items() if name not in OTHERWISE}
        form = (sent.get("output_config") or {}).get("format") or sent.get("output_format")
        form = an_object(form, "output_config.format")
        if form.get("type") == "json_schema":
            schema = {"name": "answer", "schema": form.get("schema"), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if "effort" in (sent.get("output_config") or {}):
            self.leave_out("effort")
        tools = [self._tool(tool, f"tools.{index}") for index, tool in enumerate(sent.get("tools", ()))]
        functions = list(filter(None, tools))
        choice = sent.get("tool_choice") or {}
        if functions:
            fields |= {"tools": functions, "tool_choice": self._choice(choice, functions)}
            fields["parallel_tool_calls"] = False if choice.get("disable_parallel_tool_use") else None
        elif choice.get("type") in ("any", "tool"):
            self.cannot(hosted_choice(str(choice.get("name") or choice["type"])[:64]), "tool_choice")
        translated = {
            "messages": self._messages(),
            "max_completion_tokens": sent.get("max_tokens"),
            "stop": sent.get("stop_sequences") or None,
        }
        return fields | {name: value for name, value in translated.items() if value is not None}

    def outlines(self) -> dict[str, Any]:
        """Return as much of the request as limits are counted by, in chat's terms; its prompt is checked too."""
        self._check_parts({"content": self.sent.get("system")}, "system")
        return super().outlines()

    def lower(self, limit: int) -> None:
        """Ask for at most so many tokens: `max_tokens` is required here, so clients send one that is large enough."""
        self.sent["max_tokens"] = limit
        self.leave_out("max_tokens")

    def _tool(self, tool: dict[str, Any], param: str) -> dict[str, Any] | None:
        """Return chat's function for a tool; None for one that Anthropic runs or knows by its type alone."""
        if (tool.get("type") or "custom") != "custom":
            self.leave_out(str(tool["type"]))
            return None
        name = text(tool.get("name"), f"{param}.name")
        self._names[flat_name(name)] = name
        function = {
            "name": flat_name(name),
            "description": tool.get("description"),
            "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
            "strict": tool.get("strict"),
        }
        return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}

    def _choice(self, choice: dict[str, Any], functions: list[dict[str, Any]]) -> Any:
        if choice.get("type") != "tool":
            return CHOICES.get(str(choice.get("type")))
        name = flat_name(text(choice.get("name"), "tool_choice.name"))
        if all(tool["function"]["name"] != name for tool in functions):
            self.cannot(hosted_choice(name[:64]), "tool_choice")
        return {"type": "function", "function": {"name": name}}

    def _messages(self) -> list[dict[str, Any]]:
        chat = Conversation()
        if system := self._parts(self.sent.get("system") or [], "system"):
            chat.say("system", system)
        for index, message in enumerate(self.sent["messages"]):
            param = f"messages.{index}.content"
            said: list[Part] = []
            for part in self._blocks(message["content"], param):
                kind = part["type"]
                if kind in ("tool_use", "tool_result", "thinking") and said:
                    chat.say(message["role"], said)
                    said = []
                if kind == "thinking":
                    chat.think(part["thought"])
                elif kind == "tool_use":
                    chat.call(part["id"], flat_name(part["name"]), part["arguments"])
                elif kind == "tool_result":
                    chat.result(part["id"], part["parts"])
                else:
                    said.append(part)
            if said:
                chat.say(message["role"], said)
        messages = chat.end()
        if not messages:
            self.cannot("messages: there is nothing in it that this model can read.", "messages")
        return messages or [{"role": "user", "content": ""}]

    def _blocks(self, content: Any, param: str) -> list[Part]:
        """Return chat's parts for a message's content, with what is no part of chat's under names of our own."""
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        found = []
        for index, block in enumerate(objects(content, param)):
            where, kind = f"{param}.{index}", block.get("type")
            if kind == "tool_use":
                call = {name: text(block.get(name), f"{where}.{name}") for name in ("id", "name")}
                found.append({"type": kind, **call, "arguments": to_json(block.get("input") or {}).decode()})
            elif kind == "tool_result":
                parts = self._parts(block.get("content") or [], f"{where}.content")
                if block.get("is_error"):
                    parts.insert(0, {"type": "text", "text": "Error:"})
                call_id = text(block.get("tool_use_id"), f"{where}.tool_use_id")
                found.append({"type": kind, "id": call_id, "parts": parts})
            elif kind in ("thinking", "redacted_thinking"):
                if thought := self.unseal(block.get("signature"), "thinking"):
                    found.append({"type": "thinking", "thought": thought})
            else:
                found += self._part(block, where)
        return found

    def _parts(self, content: Any, param: str) -> list[Part]:
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        return [part for i, block in enumerate(objects(content, param)) for part in self._part(block, f"{param}.{i}")]

    def _part(self, block: dict[str, Any], param: str) -> list[Part]:
        """Return chat's parts for a block: one, several for a document of blocks, or none."""
        kind = block.get("type")
        if "cache_control" in block:
            self.leave_out("cache_control")
        if kind == "text":
            return [{"type": "text", "text": text(block.get("text"), f"{param}.text")}]
        if kind == "search_result":
            title = f"{block.get('title')} ({block.get('source')})"
            return [{"type": "text", "text": title}, *self._parts(block.get("content"), f"{param}.content")]
        if kind not in ("image", "document"):
            self.leave_out(str(kind))
            return []
        source: dict[str, Any] = block["source"] if isinstance(block.get("source"), dict) else {}
        inner = {name: value for name, value in source.items() if name != "content"}  # which is looked at by itself
        web_only({**block, "source": inner}, param)
        address = source.get("url")
        if source.get("type") == "base64":
            address = f"data:{source.get('media_type')};base64,{source.get('data')}"
        if kind == "image" and isinstance(address, str):
            return [{"type": "image_url", "image_url": {"url": address}}]
        titled = [{"type": "text", "text": str(block["title"])}] if block.get("title") else []
        if source.get("type") == "text":
            return [*titled, {"type": "text", "text": text(source.get("data"), f"{param}.source.data")}]
        if source.get("type") == "content":
            return titled + self._parts(source.get("content"), f"{param}.source.content")
        if source.get("type") == "base64":
            return [{"type": "file", "file": {"filename": block.get("title") or "document.pdf", "file_data": address}}]
        self.cannot(f"{param}: this model reads no files at addresses: send the data itself, as base64.", param)
        return []

    # --- The answer ---------------------------------------------------------------------------------------------------

    def _begin(self) -> MessageEvents:
        return MessageEvents(self.model or "", self._names)

    @staticmethod
    def failed(error: AppError, request_id: str) -> bytes:
        """Return the event that ends a stream which has begun and has failed."""
        return b"event: error\ndata: " + to_json(error_body(error.status, error.message, request_id)) + b"\n\n"

    # --- Passing through ----------------------------------------------------------------------------------------------

    @staticmethod
    def pass_on(event: dict[str, Any], state: StreamState) -> bool:
        """Note what an event says that an upstream has sent; return whether it is the last."""
        kind = event["type"]
        if kind == "message_start":
            state.model = event["message"].get("model")
            state.usage = outlines(event["message"])["usage"] | {"completion_tokens": None}  # not known yet
        elif kind == "message_delta":
            if event["delta"].get("stop_reason"):
                state.finish_reasons[0] = str(event["delta"]["stop_reason"])
            told = counts(event.get("usage"))
            begun = outlines({"usage": told})["usage"] if "input_tokens" in told else state.usage or {}
            state.usage = begun | {"completion_tokens": told.get("output_tokens")}
        elif kind == "content_block_delta":
            state.chunks += 1
        return bool(kind == "message_stop")

    @staticmethod
    def error_in(event: dict[str, Any]) -> Any:
        """Return the error that an event tells; None if it tells none."""
        return event.get("error") or event if event.get("type") == "error" else None

    @staticmethod
    def as_chat(body: dict[str, Any]) -> dict[str, Any]:
        """Return the outlines of a chat completion for a whole message."""
        return outlines(body)
