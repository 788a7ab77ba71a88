"""An OpenAI-compatible server for packed models. Never imports torch."""

from yocobit.renamed import aliases
from yocobit.serving.http.app import create_app
from yocobit.serving.http.server import serve
from yocobit.serving.settings import ServerSettings

__all__ = ["ServerSettings", "create_app", "serve"]

__getattr__ = aliases(__name__, {"ServeError": "yocobit.errors:UserError"})
