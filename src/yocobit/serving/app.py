"""The former import path of `create_app`, to be removed in 0.2; use yocobit.serving."""

from yocobit.serving.http.app import create_app

__all__ = ["create_app"]
