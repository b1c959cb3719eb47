"""The backend."""

TEMPLATE_VERSION = "1.1.0"
"""The release of copier-ai-backend that this project is at."""
