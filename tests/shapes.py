"""Projects that between them have every answer that makes a difference."""

SHAPES: dict[str, dict[str, str | bool]] = {
    "default": {},
    "GitLab": {"ci": "gitlab"},
    "no CI": {"ci": "none"},
    "no container": {"container": False},
    "Kubernetes": {"kubernetes": True},
    "another vendor": {
        "default_model": "anthropic/claude-sonnet-4-5",
        "cors_origins": "https://a.example,https://b.example",
    },
    "own server and index": {
        "api_base": "http://localhost:8001/v1",
        "default_model": "Qwen/Qwen3-8B",
        "package_index": "https://pypi.org/simple",
    },
    "other texts": {"project_name": 'Ask "me" 👋', "project_slug": "ask", "description": "", "cors_origins": ""},
}
