"""Other dialects of chat: OpenAI's Responses, Anthropic's Messages. Pure functions and state machines, no I/O."""
