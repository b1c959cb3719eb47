"""Projects that between them have every answer that makes a difference."""

import tomllib

from workspace import ROOT

LOCKED = tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))["package"]
INDEX: str = next(package["source"]["registry"] for package in LOCKED if "registry" in package["source"])
"""The index that this repository's own lock was made from."""

SHAPES: dict[str, dict[str, str | bool]] = {
    "default": {},
    "GitLab": {"ci": "gitlab"},
    "no CI": {"ci": "none"},
    "no container": {"container": False},
    "Kubernetes": {"kubernetes": True},
    "database": {"database": True, "kubernetes": True},
    "another vendor": {
        "default_model": "anthropic/claude-sonnet-4-5",
        "cors_origins": "https://a.example,https://b.example",
    },
    "own server and index": {
        "api_base": "http://localhost:8001/v1",
        "default_model": "Qwen/Qwen3-8B",
        "package_index": INDEX,
    },
    "other texts": {"project_name": 'Ask "me" 👋', "project_slug": "ask", "description": "", "cors_origins": ""},
}
