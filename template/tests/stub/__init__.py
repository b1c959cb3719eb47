"""A stub upstream: a provider of our own on a loopback socket, which answers well or misbehaves on demand."""

from tests.stub.behaviour import MODEL_SUFFIX, PROMPT_TOKENS, TEXT, Behaviour
from tests.stub.server import Received, Stub

__all__ = ["MODEL_SUFFIX", "PROMPT_TOKENS", "TEXT", "Behaviour", "Received", "Stub"]
