"""Replicas of a model behind one address, on Ray Serve (extra `cluster`).

    python examples/ray_serve.py [--replicas 2] [--port 8000] [--model MODEL]

Each replica is a whole yocobit server. A conversation stays on the replica that knows it: the
router hashes how a request begins, so what follows finds its prefix cached. If a replica is lost,
Ray makes another one, and its conversations go to those that are left; any of them gives the same
answers, since answers depend on model, request and seed alone.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from yocobit.pretrained import TINY

_BEGIN = 256  # characters that tell conversations apart
