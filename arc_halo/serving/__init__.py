"""Reactors over HTTP, as OpenAI's clients ask for models (extra `serve`)."""
