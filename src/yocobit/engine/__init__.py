"""Inference with packed models: sessions, sampling, generation and chat. Never imports torch."""

from yocobit._native import FileChangedError
from yocobit.engine.chat import Chat
from yocobit.engine.engine import Engine
from yocobit.engine.sampling import Sampler, SamplingConfig
from yocobit.engine.saved_session import SavedSessionError
from yocobit.engine.session import Session, Snapshot

__all__ = [
    "Chat",
    "Engine",
    "FileChangedError",
    "Sampler",
    "SamplingConfig",
    "SavedSessionError",
    "Session",
    "Snapshot",
]
