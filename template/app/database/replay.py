"""Replay: a second attempt at an answer, told to those who have seen the beginning of the first one."""

from typing import Any

from app.database.conversations import Body

FIRST = ("response.created", "response.queued")
"""Events that are stored before the first attempt."""
SKIPPED = ("response.created", "response.in_progress")


class Replay:
    """Passes on what a new attempt adds to the events that are stored already.

    As long as the new attempt says the same, it is silent: pieces of text may be cut otherwise, and ids may differ.
    Where it says something else, the items of the earlier attempt end as incomplete, and the new ones follow them.

    Args:
        stored: the events so far.
        attempt: the number of this attempt.
    """

    def __init__(self, stored: list[Body], attempt: int) -> None:
        self._told = _joined(event for event in stored if event["type"] not in FIRST)
        self._at = self._offset = 0
        self._held: list[Body] = []
        self._names: dict[str, str] = {}
        self._suffix = ""
        self._new_suffix = f"_{attempt}"
        self._before: list[Body] = []

    def take(self, event: Body) -> list[Body]:
        """Return the events for one of the new attempt's."""
        if event["type"] == "response.created":
            return []  # it is stored
        if self._at == len(self._told):
            return [self._renamed(event)]
        self._held.append(event)
        known = self._told[self._at]
        if _place(event) != _place(known):
            return self._part()
        self._learn(event.get("item"), known.get("item"))
        if not _is_delta(event):
            self._at += 1
            return []
        left, said = known["delta"][self._offset :], event["delta"]
        if left.startswith(said):
            self._offset += len(said)
            more = ""
        elif said.startswith(left) and self._at == len(self._told) - 1:
            self._offset = len(known["delta"])
            more = said[len(left) :]
        else:
            return self._part()
        if self._offset == len(known["delta"]):
            self._at, self._offset = self._at + 1, 0
        return [self._renamed(event | {"delta": more})] if more else []

    def _learn(self, new: Body | None, known: Body | None) -> None:
        for name in ("id", "call_id"):
            if new and known and name in new and name in known:
                self._names[new[name]] = known[name]

    def _part(self) -> list[Body]:
        """End what the earlier attempt has begun, and begin again."""
        items, open_ones = _items(self._told)
        self._at = len(self._told)
        self._before, self._names, self._suffix = items, {}, self._new_suffix
        ended = [{"type": "response.output_item.done", "output_index": i, "item": items[i]} for i in open_ones]
        return ended + [self._renamed(event) for event in self._held if event["type"] not in SKIPPED]

    def _name(self, name: str) -> str:
        return self._names.get(name, name + self._suffix)

    def _item(self, item: Body) -> Body:
        known: Body = {"id": self._name(item["id"])} if "id" in item else {}
        if "call_id" in item:
            known["call_id"] = self._names.get(item["call_id"], item["call_id"])
        return item | known

    def _renamed(self, event: Body) -> Body:
        event = dict(event)
        if "output_index" in event:
            event["output_index"] += len(self._before)
        if "item_id" in event:
            event["item_id"] = self._name(event["item_id"])
        if "item" in event:
            event["item"] = self._item(event["item"])
        if "response" in event:
            output = [*self._before, *map(self._item, event["response"].get("output") or ())]
            event["response"] = event["response"] | {"output": output}
        return event


def _is_delta(event: Body) -> bool:
    return event["type"].endswith(".delta") and isinstance(event.get("delta"), str)


def _place(event: Body) -> tuple[Any, ...]:
    item = event.get("item") or {}
    names = ("type", "output_index", "content_index", "summary_index")
    return *(event.get(name) for name in names), item.get("type"), item.get("name")


def _joined(events: Any) -> list[Body]:
    """Return events with the deltas of one text joined."""
    joined: list[Body] = []
    for event in events:
        if joined and _is_delta(event) and _is_delta(joined[-1]) and _place(event) == _place(joined[-1]):
            joined[-1] = joined[-1] | {"delta": joined[-1]["delta"] + event["delta"]}
        else:
            joined.append(event)
    return joined


def _items(events: list[Body]) -> tuple[list[Body], list[int]]:
    """Return the items that events have begun, and the places of those that they have not ended."""
    items: list[Body] = []
    unfinished: list[int] = []
    for event in events:
        kind, place, delta = event["type"], event.get("output_index", 0), event.get("delta")
        if kind == "response.output_item.added":
            items.append(event["item"] | {"status": "incomplete"})
            unfinished.append(place)
        elif kind == "response.output_item.done":
            items[place] = event["item"]
            if place in unfinished:
                unfinished.remove(place)
        elif kind == "response.output_text.delta":
            items[place]["content"] = [{"type": "output_text", "text": delta, "annotations": [], "logprobs": []}]
        elif kind == "response.reasoning_summary_text.delta":
            items[place]["summary"] = [{"type": "summary_text", "text": delta}]
        elif kind == "response.function_call_arguments.delta":
            items[place]["arguments"] = delta
    return items, unfinished
