"""The events and the object of a response, made from chat's chunks."""

import secrets
import time
from typing import Any

from pydantic_core import to_json

from app.dialects.chunks import Chunk, Delta, ToolCalls, add_thought, reason_of, sealed
from app.dialects.references import carrier
from app.dialects.response_objects import annotation, usage
from app.dialects.tools import Tools, custom_input
from app.llm.sse import DONE

REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Chat's finish reasons of an incomplete answer, and what Responses call them."""


class ResponseEvents:
    """Turns chat's chunks into the events of a response, and puts the response together.

    Items begin and end in the order that clients rely on: an item is added before its parts, and done after them. One
    message or reasoning item is open at a time; tool calls may run side by side, and end with the response.

    Args:
        skeleton: the response's fields that the request decides.
        tools: the request's tools.
        model: the model's public name.
        is_sealed: whether the client wants reasoning as `encrypted_content`.
        is_carried: whether the client will refer to the items by their ids.

    Attributes:
        whole: the response so far.
    """

    def __init__(
        self, skeleton: dict[str, Any], tools: Tools, model: str, *, is_sealed: bool = False, is_carried: bool = False
    ) -> None:
        self._token = skeleton.get("id", "").removeprefix("resp_") or secrets.token_hex(12)
        self._tools = tools
        self._model = model
        self._is_sealed = is_sealed
        self._is_carried = is_carried
        self._number = 0
        self._out: list[bytes] = []
        self._calls = ToolCalls()
        self._item: dict[str, Any] | None = None
        self._at = 0  # where the open item stands in the output
        self._part: dict[str, Any] | None = None
        self._said: list[str] = []
        self._around = (b"", b"")
        self._thought: dict[str, Any] = {}
        self._reason = "stop"
        self.whole: dict[str, Any] = {
            "id": f"resp_{self._token}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": model,
            "previous_response_id": None,
            "output": [],
            "usage": None,
            **skeleton,
        }

    def take(self) -> bytes:
        """Return the events that have come since it was last called."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def go_on(self, response: dict[str, Any], number: int) -> None:
        """Go on from a response that an upstream has begun itself, and from its last event's number, if it has one."""
        self.whole, self._number = dict(response), max(number + 1, 1)

    def add(self, chunk: Chunk) -> None:
        """Take a chunk."""
        if not self._number:
            self._begin(chunk.model)
        if chunk.usage:
            self.whole["usage"] = usage(chunk.usage)
        if isinstance(chunk.service_tier, str):
            self.whole["service_tier"] = chunk.service_tier
        for choice in chunk.choices or ():
            if choice.index:
                continue  # only the first one was asked for
            if choice.delta is not None:
                self._add(choice.delta, choice.logprobs)
            if choice.finish_reason:
                self._reason = reason_of(choice)

    def finish(self) -> None:
        """End the response: it is complete, or incomplete for a reason that the model gave."""
        if not self._number:
            self._begin(None)
        reason = REASONS.get(self._reason)
        status = "incomplete" if reason else "completed"
        self._close_item(status)
        for call in self._calls.all:
            self._close_call(call, status)
        if self._is_carried and (item := carrier(self.whole["output"])):
            self._emit("response.output_item.done", output_index=self._open(item), item=item)
        self.whole["status"] = status
        if reason:
            self.whole["incomplete_details"] = {"reason": reason}
        else:
            self.whole["completed_at"] = int(time.time())
        self._emit(f"response.{status}", response=self.whole)
        self._out.append(DONE)

    def fail(self, code: str, message: str) -> None:
        """End the response with an error. What has come so far stays in it, as incomplete."""
        if not self._number:
            self._begin(None)
        self.break_off()
        self.whole |= {"status": "failed", "error": {"code": code, "message": message}}
        self._emit("response.failed", response=self.whole)
        self._out.append(DONE)

    def break_off(self) -> None:
        """Put what open items have said into the response, and mark them as incomplete."""
        said = "".join(self._said)
        if self._part:
            self._part["text" if self._part["type"] == "output_text" else "refusal"] = said
        elif self._item and self._item.get("summary"):
            self._item["summary"][0]["text"] = said
        for call in self._calls.all:
            if call.place is not None and (item := self.whole["output"][call.place])["type"] == "function_call":
                item["arguments"] = call.arguments
        output = self.whole.get("output")
        for item in output if isinstance(output, list) else ():
            if isinstance(item, dict) and item.get("status") == "in_progress":
                item["status"] = "incomplete"

    # --- Parts --------------------------------------------------------------------------------------------------------

    def _begin(self, model: Any) -> None:
        if isinstance(model, str) and model:
            self.whole["model"] = model
        for kind in ("response.created", "response.in_progress"):
            self._emit(kind, response=self.whole)

    def _emit(self, kind: str, **fields: Any) -> None:
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), to_json(body)))

    def _add(self, delta: Delta, logprobs: Any) -> None:
        if thought := delta.thought:
            self._think(thought)
        if delta.content and (text := delta.text):
            self._say("output_text", text, logprobs)
        if delta.refusal:
            self._say("refusal", str(delta.refusal), None)
        for part in delta.tool_calls or ():
            self._call(part)
        if delta.annotations and self._part and "annotations" in self._part:
            self._cite(self._part["annotations"], delta.annotations)

    def _open(self, item: dict[str, Any]) -> int:
        """Add an item to the output; return where it stands."""
        place = len(self.whole["output"])
        self.whole["output"].append(item)
        self._emit("response.output_item.added", output_index=place, item=item)
        return place

    def _where(self, place: int) -> dict[str, Any]:
        return {"item_id": self.whole["output"][place]["id"], "output_index": place}

    def _say(self, kind: str, text: str, logprobs: Any) -> None:
        """Add text or a refusal to the open message."""
        part = self._part if self._part and self._part["type"] == kind else self._begin_part(kind)
        self._said.append(text)
        found = logprobs.get("content") if isinstance(logprobs, dict) else None
        if found:
            part["logprobs"] += found
        before, after = self._around
        probable = b',"logprobs":%b}\n\n' % to_json(found or []) if kind == "output_text" else b"}\n\n"
        self._out.append(b"%b%d%b%b%b" % (before, self._number, after, to_json(text), probable))
        self._number += 1

    def _begin_part(self, kind: str) -> dict[str, Any]:
        if self._item is None or self._item["type"] != "message":
            self._close_item("completed")
            item_id = f"msg_{self._token}{len(self.whole['output'])}"
            self._item = {"type": "message", "id": item_id, "role": "assistant", "content": [], "status": "in_progress"}
            self._at = self._open(self._item)
        self._close_part()
        text = {"annotations": [], "logprobs": [], "text": ""} if kind == "output_text" else {"refusal": ""}
        part = self._part = {"type": kind, **text}
        place = {**self._where(self._at), "content_index": len(self._item["content"])}
        self._item["content"].append(part)
        self._emit("response.content_part.added", **place, part=part)
        self._prepare(f"response.{kind}.delta", place)
        return part

    def _prepare(self, kind: str, place: dict[str, Any]) -> None:
        """Make what stands before and after the number of every delta, once: a stream is mostly deltas."""
        self._place = place
        head = b'event: %b\ndata: {"type":"%b","sequence_number":' % (kind.encode(), kind.encode())
        self._around = (head, b"," + to_json(place)[1:-1] + b',"delta":')

    def _cite(self, told: list[dict[str, Any]], more: list[Any]) -> None:
        """Add annotations to the open text."""
        for found in more:
            if isinstance(found, dict):
                place = {**self._place, "annotation_index": len(told)}
                told.append(annotation(found))
                self._emit("response.output_text.annotation.added", **place, annotation=told[-1])

    def _close_part(self) -> None:
        if self._part is None:
            return
        part, self._part, text = self._part, None, "".join(self._said)
        self._said = []
        if part["type"] == "output_text":
            part["text"] = text
            self._emit("response.output_text.done", **self._place, text=text, logprobs=part["logprobs"])
        else:
            part["refusal"] = text
            self._emit("response.refusal.done", **self._place, refusal=text)
        self._emit("response.content_part.done", **self._place, part=part)

    def _think(self, thought: dict[str, Any]) -> None:
        """Add reasoning to the open reasoning item. Its text is the item's summary, which all clients show."""
        if self._item is None or self._item["type"] != "reasoning":
            self._close_item("completed")
            item_id = f"rs_{self._token}{len(self.whole['output'])}"
            self._item = {"type": "reasoning", "id": item_id, "summary": []}
            self._thought = {}
            self._at = self._open(self._item)
        text = add_thought(self._thought, thought)
        if not text:
            return
        if not self._item["summary"]:
            place = {**self._where(self._at), "summary_index": 0}
            self._item["summary"].append({"type": "summary_text", "text": ""})
            self._emit("response.reasoning_summary_part.added", **place, part=self._item["summary"][0])
            self._prepare("response.reasoning_summary_text.delta", place)
        self._said.append(text)
        before, after = self._around
        self._out.append(b"%b%d%b%b}\n\n" % (before, self._number, after, to_json(text)))
        self._number += 1

    def _close_item(self, status: str) -> None:
        """End the open message or reasoning item."""
        if self._item is None:
            return
        item, self._item = self._item, None
        if item["type"] == "message":
            self._close_part()
            item["status"] = status
        else:
            if item["summary"]:
                text = item["summary"][0]["text"] = "".join(self._said)
                self._emit("response.reasoning_summary_text.done", **self._place, text=text)
                self._emit("response.reasoning_summary_part.done", **self._place, part=item["summary"][0])
            self._said = []
            if self._is_sealed:
                item["encrypted_content"] = sealed(self._thought, self._model)
        self._emit("response.output_item.done", output_index=self._at, item=item)

    def _call(self, part: dict[str, Any]) -> None:
        """Add a part of a tool call."""
        self._close_item("completed")
        call, arguments = self._calls.add(part)
        if call.place is None:
            if not call.name:
                return  # its arguments wait for its name
            item_id = f"fc_{self._token}{len(self.whole['output'])}"
            call.place = self._open(self._tools.item(item_id, call.id, call.name))
            arguments = call.arguments
        item = self.whole["output"][call.place]
        if arguments and item["type"] == "function_call":  # a custom tool's input is known when its JSON is complete
            self._emit("response.function_call_arguments.delta", **self._where(call.place), delta=arguments)

    def _close_call(self, call: Any, status: str) -> None:
        if call.place is None:
            return
        item, where = self.whole["output"][call.place], self._where(call.place)
        arguments = call.arguments
        item["status"] = status
        if item["type"] == "custom_tool_call":
            item["input"] = custom_input(arguments)
            self._emit("response.custom_tool_call_input.delta", **where, delta=item["input"])
            self._emit("response.custom_tool_call_input.done", **where, input=item["input"])
        else:
            if not arguments:
                self._emit("response.function_call_arguments.delta", **where, delta="{}")
            item["arguments"] = arguments or "{}"
            done = {"name": item["name"], "arguments": item["arguments"]}
            self._emit("response.function_call_arguments.done", **where, **done)
        self._emit("response.output_item.done", output_index=call.place, item=item)
