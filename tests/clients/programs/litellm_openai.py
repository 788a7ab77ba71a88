"""LiteLLM with the provider openai/."""

import litellm_features
from feature import run

run(**litellm_features.features("openai", "/v1"))
