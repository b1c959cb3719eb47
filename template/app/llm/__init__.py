"""The path to the models. Nothing in this folder imports FastAPI."""
