"""Tests of the template's own modules. `uv run pytest` leaves them out; `uv run pytest tests/template` runs them."""
