"""The path to the models. Nothing in here knows of FastAPI."""
