"""LiteLLM with the provider groq/."""

import litellm_features
from feature import run

run(**litellm_features.features("groq", "/openai/v1"))
