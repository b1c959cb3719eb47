"""Tools of the Responses API as chat's functions, and back."""

import hashlib
from typing import Any, NamedTuple

from pydantic_core import to_json

from app.dialects.conversation import an_object, objects, text
from app.dialects.translation import Translation, hosted_choice
from app.llm.json_text import read_json

LONGEST_NAME = 64
"""Characters of a function's name, at most (OpenAI's reference, chat completions)."""
CUSTOM_INPUT = "input"
"""The one argument of the function that stands for a custom tool."""


class Tool(NamedTuple):
    """A tool that a model may call.

    Attributes:
        name: its own name.
        namespace: the namespace that it stands in, if any.
        is_custom: whether its input is free text.
    """

    name: str
    namespace: str | None = None
    is_custom: bool = False


class Tools:
    """The tools of a request: chat's functions, and what each one stands for.

    Attributes:
        functions: chat's `tools`.
        echo: the tools of the answer: those that the model could call.
    """

    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self._by_flat: dict[str, Tool] = {}
        self.functions: list[dict[str, Any]] = []
        self.echo: list[dict[str, Any]] = []
        for index, tool in enumerate(objects(translation.sent.get("tools", []), "tools")):
            self._add(tool, f"tools.{index}")

    def _add(self, tool: dict[str, Any], param: str, namespace: str | None = None) -> None:
        kind = text(tool.get("type"), f"{param}.type")
        if kind == "namespace":
            name = text(tool.get("name"), f"{param}.name")
            for index, inner in enumerate(objects(tool.get("tools", []), f"{param}.tools")):
                self._add(inner, f"{param}.tools.{index}", name)
            self.echo.append(tool)
            return
        if kind not in ("function", "custom"):
            self._translation.leave_out(kind)
            return
        name = text(tool.get("name"), f"{param}.name")
        flat = flat_name(name, namespace)
        self._by_flat[flat] = Tool(name, namespace, kind == "custom")
        function = {"name": flat, "description": tool.get("description"), "strict": tool.get("strict")}
        if kind == "custom":
            function["description"] = _with_grammar(tool)
            properties = {CUSTOM_INPUT: {"type": "string"}}
            function["parameters"] = {"type": "object", "properties": properties, "required": [CUSTOM_INPUT]}
        else:
            function["parameters"] = tool.get("parameters")
        function = {name: value for name, value in function.items() if value is not None}
        self.functions.append({"type": "function", "function": function})
        if namespace is None:
            default = {"description": None, "parameters": None, "strict": None} if kind == "function" else {}
            self.echo.append({**default, **tool})

    def choice(self) -> Any:
        """Return chat's `tool_choice`; None leaves it out. `functions` keeps only those of `allowed_tools`."""
        chosen = self._translation.sent.get("tool_choice")
        if isinstance(chosen, dict):
            kind = text(chosen.get("type"), "tool_choice.type")
            if kind == "allowed_tools":
                allowed = {self._flat_of(tool) for tool in objects(chosen.get("tools"), "tool_choice.tools")}
                self.functions = [tool for tool in self.functions if tool["function"]["name"] in allowed]
                chosen = chosen.get("mode")
            elif kind in ("function", "custom"):
                return {"type": "function", "function": {"name": self._flat_of(chosen)}}
            else:
                self._translation.cannot(hosted_choice(kind), "tool_choice")
                return None
        if not self.functions:
            if chosen == "required":
                self._translation.cannot("tool_choice is required, but this model has no tool to call.", "tool_choice")
            return None
        return chosen

    def _flat_of(self, named: dict[str, Any]) -> str:
        return flat_name(str(named.get("name")), named.get("namespace"))

    def item(self, item_id: str, call_id: str, flat: str) -> dict[str, Any]:
        """Return the item of a call that begins."""
        tool = self._by_flat.get(flat, Tool(flat))
        item = {"type": "function_call", "id": item_id, "call_id": call_id, "name": tool.name, "arguments": ""}
        if tool.is_custom:
            item = {"type": "custom_tool_call", "id": item_id, "call_id": call_id, "name": tool.name, "input": ""}
        if tool.namespace:
            item["namespace"] = tool.namespace
        return {**item, "status": "in_progress"}


def flat_name(name: str, namespace: Any = None) -> str:
    """Return the function's name for a tool. Names that are too long end in a part of their hash."""
    flat = f"{namespace.removesuffix('__')}__{name}" if isinstance(namespace, str) else name
    if len(flat) <= LONGEST_NAME:
        return flat
    return f"{flat[: LONGEST_NAME - 9]}_{hashlib.sha256(flat.encode()).hexdigest()[:8]}"


def custom_arguments(given: str) -> str:
    """Return a function's arguments for the input of a custom tool."""
    return to_json({CUSTOM_INPUT: given}).decode()


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool, from the arguments of the function that stands for it."""
    try:
        given = read_json(arguments.encode())[CUSTOM_INPUT]
    except (ValueError, LookupError, TypeError):
        return arguments  # a model that has written the input itself
    return given if isinstance(given, str) else to_json(given).decode()


def _with_grammar(tool: dict[str, Any]) -> str:
    """Return a custom tool's description, with the grammar that its input follows."""
    form = an_object(tool.get("format"), "tools.format")
    about = text(tool.get("description") or "", "tools.description")
    words = [about, f"Put the whole input into the argument {CUSTOM_INPUT!r}, as text."]
    if form.get("definition"):
        words.append(f"It follows this grammar ({form.get('syntax')}):\n{form['definition']}")
    return "\n\n".join(filter(None, words))
