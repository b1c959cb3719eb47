"""OpenAI's Responses, bridged onto chat: the request. The answer is in response_events.py.

Source: OpenAI's reference, and the open specification (openresponses.org), version 2026-04-24.
"""

import re
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field

from app.dialects.conversation import Conversation, Part, an_object, objects, text, web_only
from app.dialects.references import resolved
from app.dialects.response_events import ResponseEvents
from app.dialects.response_objects import skeleton
from app.dialects.tools import Tools, custom_arguments, flat_name
from app.dialects.translation import Translation
from app.errors import AppError, UnsupportedParameter
from app.llm.sse import DONE
from app.llm.stream_state import StreamState
from app.models import AS_INTEGER, Name, Wire

FIELDS = {
    "input", "instructions", "stream_options", "max_output_tokens", "tools", "tool_choice", "parallel_tool_calls",
    "text", "reasoning", "include", "store", "metadata", "truncation", "top_logprobs", "background", "service_tier",
}  # fmt: skip
"""What is translated below, or echoed."""
HINTS = {
    "client_metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "max_tool_calls",
    "context_management",
}  # fmt: skip
"""What chat has no word for, and what an answer can do without."""
STATE = {
    "previous_response_id": "Responses are not stored here: send the whole conversation as input, and store: false.",
    "conversation": "Conversations are not stored here: send the whole conversation as input, and store: false.",
    "prompt": "Prompts are not stored here: send the text itself as instructions and input.",
}
"""What needs a memory, and what to do instead."""
OTHERWISE = FIELDS | HINTS | STATE.keys()
"""What chat has not, or not by the same name. All else is passed on."""
BACKGROUND = "Nothing is answered in the background here: leave background out, and stream the answer."
REFERENCE = "Items are not stored here: send the items themselves, and store: false."
NUMBER = re.compile(rb'"sequence_number": ?([0-9]{1,18})(?![0-9])')
TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


class ResponsesRequest(Wire):
    """A request for a response. What isn't named here has no bounds of its own, and is passed on."""

    model: Name | None = Field(default=None, description="A public name of the model table; left out, the default.")
    input: str | Annotated[list[dict[str, Any]], Field(max_length=4096, fail_fast=True)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1), AS_INTEGER] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    tools: Annotated[list[dict[str, Any]], Field(max_length=512, fail_fast=True)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: Annotated[list[str], Field(max_length=64, fail_fast=True)] | None = None
    metadata: dict[str, Any] | None = None


class Responses(Translation):
    """Translates one request of the Responses API. See `app.llm.translator.Translator`.

    Args:
        asked: the request.
        refers: whether its client will refer to items by their ids, unless `store` is false.
    """

    dialect = "responses"
    path = "/responses"
    end = DONE
    history = "input"
    needs = "output"
    bound = "max_output_tokens"
    names: ClassVar[dict[str, str]] = {
        "max_completion_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "messages": "input",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
    }
    defaults = frozenset({"temperature", "top_p", "max_output_tokens", "reasoning"})

    def __init__(self, asked: ResponsesRequest, *, refers: bool = False) -> None:
        super().__init__(asked)
        if isinstance(given := self.sent.get("input"), list):
            self.sent["input"], values = resolved(given, self._unsealed_values)
            self._unsealed_values -= values
        self._refers = refers and self.sent.get("store") is not False

    def is_read(self, message: dict[str, Any]) -> bool:
        """Return whether an item has parts as messages have them."""
        return (message.get("type") or "message") in ("message", "function_call_output", "custom_tool_call_output")

    @cached_property
    def tools(self) -> Tools:
        """The request's tools."""
        return Tools(self)

    # --- The request --------------------------------------------------------------------------------------------------

    def _fields(self) -> dict[str, Any]:
        """Return chat's fields for the request's."""
        sent = self.sent
        if sent.get("background"):
            raise UnsupportedParameter(f"background: {BACKGROUND}", param="background")
        for name, instead in STATE.items():
            if sent.get(name):
                self.cannot(f"{name}: {instead}", name)
        for name in sorted(HINTS.intersection(sent)):
            self.leave_out(name)
        if sent.get("truncation", "disabled") != "disabled":
            self.leave_out("truncation")
        choice = self.tools.choice()
        form = an_object(self._text("format"), "text.format")
        if form.get("type") == "json_schema":
            named = ("name", "schema", "strict", "description")
            schema = {name: form[name] for name in named if form.get(name) is not None}
            form = {"type": "json_schema", "json_schema": schema}
        fields = {name: value for name, value in sent.items() if name not in OTHERWISE}
        translated = {
            "messages": self._messages(),
            "max_completion_tokens": sent.get("max_output_tokens"),
            "reasoning_effort": (sent.get("reasoning") or {}).get("effort"),
            "response_format": form if form.get("type") in ("json_schema", "json_object") else None,
            "verbosity": self._text("verbosity"),
        }
        if sent.get("service_tier", "auto") not in ("auto", "default"):
            fields["service_tier"] = sent["service_tier"]
        if self.tools.functions:
            translated |= {"tools": self.tools.functions, "tool_choice": choice}
            translated["parallel_tool_calls"] = False if sent.get("parallel_tool_calls") is False else None
        logprobs = sent.get("top_logprobs")
        if logprobs or "message.output_text.logprobs" in sent.get("include", ()):
            translated |= {"logprobs": True, "top_logprobs": logprobs}
        return fields | {name: value for name, value in translated.items() if value is not None}

    def _text(self, name: str) -> Any:
        return (self.sent.get("text") or {}).get(name)

    def _messages(self) -> list[dict[str, Any]]:
        chat = Conversation()
        if self.sent.get("instructions"):
            chat.say("system", [{"type": "text", "text": self.sent["instructions"]}])
        given = self.sent.get("input", "")
        if isinstance(given, str):
            chat.say("user", [{"type": "text", "text": given}])
        else:
            for index, item in enumerate(given):
                self._item(chat, item, f"input.{index}")
        messages = chat.end()
        if not messages:
            self.cannot("input: there is nothing in it that this model can read.", "input")
        return messages or [{"role": "user", "content": ""}]

    def _item(self, chat: Conversation, item: dict[str, Any], param: str) -> None:
        """Add one item of the input."""
        kind = item.get("type") or "message"
        if kind == "message":
            role = text(item.get("role"), f"{param}.role")
            chat.say("system" if role == "developer" else role, self._parts(item.get("content"), f"{param}.content"))
        elif kind in ("function_call", "custom_tool_call"):
            field = "input" if kind == "custom_tool_call" else "arguments"
            given = text(item.get(field), f"{param}.{field}")
            name = flat_name(text(item.get("name"), f"{param}.name"), item.get("namespace"))
            arguments = custom_arguments(given) if field == "input" else given
            chat.call(text(item.get("call_id"), f"{param}.call_id"), name, arguments)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            parts = self._parts(item.get("output"), f"{param}.output")
            chat.result(text(item.get("call_id"), f"{param}.call_id"), parts)
        elif kind == "reasoning":
            if thought := self.unseal(item.get("encrypted_content"), "reasoning"):
                chat.think(thought)
        elif kind == "item_reference":
            self.cannot(f"{param}: {REFERENCE}", param)
        else:
            self.leave_out(str(kind)[:64])

    def _parts(self, content: Any, param: str) -> list[Part]:
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        found = (self._part(part, f"{param}.{i}") for i, part in enumerate(objects(content, param)))
        return [part for part in found if part]

    def _part(self, part: dict[str, Any], param: str) -> Part | None:
        """Return chat's part for a part of a message or of a tool's output."""
        kind = part.get("type")
        if kind in TEXT_PARTS:
            return {"type": "text", "text": text(part.get("text"), f"{param}.text")}
        if kind == "refusal":
            return {"type": "refusal", "refusal": text(part.get("refusal"), f"{param}.refusal")}
        web_only(part, param)
        if kind == "input_image" and isinstance(part.get("image_url"), str):
            image = {"url": part["image_url"], "detail": part.get("detail")}
            return {"type": "image_url", "image_url": {name: value for name, value in image.items() if value}}
        if kind == "input_file" and isinstance(part.get("file_data"), str):
            file = {"filename": part.get("filename") or "file", "file_data": part["file_data"]}
            return {"type": "file", "file": file}
        if part.get("file_url"):
            self.cannot(f"{param}: this model reads no files at addresses: send the data itself, as file_data.", param)
        elif kind in ("input_image", "input_file"):
            self.cannot(f"{param}: files are not stored here: send image_url, or file_data.", param)
        elif kind == "input_audio":
            return part
        else:
            self.cannot(f"{param}: this model takes no part of type {str(kind)[:64]!r}.", param)
        return None

    # --- The answer ---------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Forget what a failed attempt has said."""
        super().restart()
        self._last_number = -1
        self._seen: dict[str, Any] | None = None

    def _begin(self) -> ResponseEvents:
        is_sealed = self._refers or "reasoning.encrypted_content" in self.sent.get("include", ())
        how = {"is_sealed": is_sealed, "is_carried": self._refers}
        return ResponseEvents(self._skeleton(), self.tools, self.model or "", **how)

    def _skeleton(self) -> dict[str, Any]:
        return skeleton(self.sent, self.tools)

    def failed(self, error: AppError, request_id: str) -> bytes:
        """Return the events that end a stream which has begun and has failed."""
        if self._seen and self._begun is None:  # passed through: nobody has looked at what the response echoes
            self.sent = {"input": ""}
        stream: ResponseEvents = self._stream
        if self._seen:
            numbers = map(int, NUMBER.findall(self.last_deltas))
            stream.go_on(self._seen, max([self._last_number, *numbers]))
        stream.fail(error.code, error.message)
        return stream.take()

    # --- Passing through ----------------------------------------------------------------------------------------------

    def pass_on(self, event: dict[str, Any], state: StreamState) -> bool:
        """Note what an event says that an upstream has sent; return whether it is the last."""
        if isinstance(number := event.get("sequence_number"), int):
            self._last_number = number
        if not isinstance(event.get("response"), dict):
            state.chunks += 1
            return False
        self._seen = event["response"]
        state.model = self._seen.get("model") or state.model
        if event["type"] not in ("response.completed", "response.incomplete"):
            return False
        outlines = self.as_chat(self._seen)
        state.usage = outlines["usage"] or None
        state.finish_reasons[0] = outlines["choices"][0]["finish_reason"]
        return True

    @staticmethod
    def error_in(event: dict[str, Any]) -> Any:
        """Return the error that an event tells; None if it tells none."""
        if event.get("type") == "response.failed":
            return event["response"].get("error") or {"code": "server_error"}
        return event.get("error") or event if event.get("type") == "error" else None

    @staticmethod
    def as_chat(body: dict[str, Any]) -> dict[str, Any]:
        """Return the outlines of a chat completion for a whole response."""
        usage: dict[str, Any] | None = None
        if isinstance(told := body.get("usage"), dict) and told:
            usage = {
                "prompt_tokens": told.get("input_tokens"),
                "prompt_tokens_details": told.get("input_tokens_details"),
                "completion_tokens": told.get("output_tokens"),
                "completion_tokens_details": told.get("output_tokens_details"),
                "total_tokens": told.get("total_tokens"),
            }
        reason = (body.get("incomplete_details") or {}).get("reason") or "stop"
        called = any(item.get("type") == "function_call" for item in body.get("output") or ())
        reason = {"max_output_tokens": "length", "stop": "tool_calls" if called else "stop"}.get(reason, reason)
        choice: dict[str, Any] = {"finish_reason": reason, "message": {}}
        return {"model": body.get("model"), "choices": [choice], "usage": usage}
