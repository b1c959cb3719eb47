"""The tests need no key and no network, and see neither this machine's variables nor `.env` nor `app/settings.toml`.

That is arranged here, since importing `app.main` already reads them.
"""

import os
import re

_OUTSIDE = re.compile(
    r"(APP|OPENAI|ANTHROPIC|AZURE|AWS|GOOGLE|GEMINI|LITELLM|OTEL)_.*|.*_API_(KEY|BASE)|.*_PROXY|PORT", re.IGNORECASE
)
for _name in filter(_OUTSIDE.fullmatch, list(os.environ)):
    del os.environ[_name]
os.environ["APP_ENV_FILE"] = ""
os.environ["APP_SETTINGS_FILE"] = os.devnull
os.environ["APP_DATABASE_URL"] = "off"  # but in tests that ask for the fixture `database`, where there is one
