"""Fixtures with a database, and room for tests of what you keep in it."""
