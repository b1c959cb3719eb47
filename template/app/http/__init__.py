"""One request and its response, as HTTP."""
