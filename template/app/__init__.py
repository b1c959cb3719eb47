"""The backend."""

TEMPLATE_VERSION = "0.12.0"
"""The release of copier-ai-backend that this project is at."""
