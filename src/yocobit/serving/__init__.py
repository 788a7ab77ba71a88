"""Serving packed models to OpenAI's and Groq's clients. Never imports torch."""

from yocobit.serving.app import create_app
from yocobit.serving.server import ServeError, serve
from yocobit.serving.settings import ServerSettings

__all__ = ["ServeError", "ServerSettings", "create_app", "serve"]
