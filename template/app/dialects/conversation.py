"""Chat's messages, built from another dialect's conversation."""

from typing import Any

from app.errors import InvalidRequest
from app.models import addresses

Part = dict[str, Any]


class Conversation:
    """Builds the messages of a chat request. What one turn of the assistant consists of becomes one message.

    Attributes:
        messages: the messages so far; complete after `end`, which joins the texts of the assistant and the system.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._thought: dict[str, Any] = {}
        self._media: list[Part] = []

    def say(self, role: str, parts: list[Part]) -> None:
        """Add what a role says. System messages at the beginning become one, since many models take only one."""
        self._flush(role)
        if role == "assistant":
            message = self._assistant(after_text=False)
            message["content"] += [part["text"] for part in parts if part["type"] == "text"]
            if refusals := [part["refusal"] for part in parts if part["type"] == "refusal"]:
                message["refusal"] = "".join(refusals)
        elif role != "system":
            self.messages.append({"role": role, "content": plain(parts) if _is_text(parts) else parts})
        elif len(self.messages) == 1 and self.messages[0]["role"] == "system":
            self.messages[0]["content"].append(plain(parts))
        else:
            self.messages.append({"role": role, "content": [plain(parts)]})

    def think(self, thought: dict[str, Any]) -> None:
        """Add the reasoning of the assistant's turn that begins."""
        self._flush("assistant")
        self._thought.update(thought)

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """Add a tool call of the assistant."""
        self._flush("assistant")
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._assistant(after_text=True).setdefault("tool_calls", []).append(call)

    def result(self, call_id: str, parts: list[Part]) -> None:
        """Add the result of a tool call. Chat takes only text: images and files follow as the user's."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": plain(parts)})
        self._media += [part for part in parts if part["type"] != "text"]

    def end(self) -> list[dict[str, Any]]:
        """Return all messages."""
        self._flush("")
        if self._thought:
            self._assistant(after_text=True)
        for message in self.messages:
            texts = message["content"]
            if message["role"] == "system":
                message["content"] = "\n\n".join(texts)
            elif message["role"] == "assistant":
                message["content"] = "".join(texts) if texts or "tool_calls" not in message else None
        return self.messages

    def _assistant(self, *, after_text: bool) -> dict[str, Any]:
        """Return the message of the assistant's turn: the last one, unless that is complete."""
        last = self.messages[-1] if self.messages else None
        is_open = last and (after_text or last["content"] is None or "tool_calls" in last)
        if (
            last is None
            or last["role"] != "assistant"
            or not is_open
            or (self._thought and last["content"] is not None)
        ):
            last = {"role": "assistant", "content": []}
            self.messages.append(last)
        last.update(self._thought)
        self._thought = {}
        return last

    def _is_open(self, message: dict[str, Any], *, after_text: bool) -> bool:
        if not message["content"]:
            return True
        return not self._thought and (after_text or "tool_calls" in message)

    def _flush(self, role: str) -> None:
        if self._media and role != "tool":
            self.messages.append({"role": "user", "content": self._media})
            self._media = []
        if self._thought and role != "assistant":
            self._assistant(after_text=True)


def plain(parts: list[Part]) -> str:
    """Return the texts of parts, each a paragraph: many servers take only text where chat allows parts."""
    return "\n\n".join([part["text"] for part in parts if part["type"] == "text"])


def _is_text(parts: list[Part]) -> bool:
    return all(part["type"] == "text" for part in parts)


def text(value: Any, param: str) -> str:
    """Return a text of a request.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{param}: Input should be a valid string", param=param)
    return value


def objects(value: Any, param: str) -> list[dict[str, Any]]:
    """Return a list of objects of a request.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidRequest(f"{param}: Input should be a list of objects", param=param)
    return value


def an_object(value: Any, param: str) -> dict[str, Any]:
    """Return an object of a request; an empty one for null.

    Raises:
        InvalidRequest: it is none.
    """
    return objects([{} if value is None else value], param)[0]


def web_only(part: Part, param: str) -> None:
    """Raise InvalidRequest if a part of a message leads a server to anything but the web."""
    if any(scheme not in ("http", "https") for scheme, _ in addresses(part)):
        raise InvalidRequest(f"{param}: images and files come from https:, http: or data: addresses", param=param)
