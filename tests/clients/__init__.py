"""OpenAI's own clients, each in an environment of its own, against a generated project that runs."""
