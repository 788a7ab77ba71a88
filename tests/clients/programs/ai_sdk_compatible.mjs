// Vercel's AI SDK with its provider for OpenAI-compatible servers, which uses chat completions.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { features } from "./ai_sdk_features.mjs";
import { MODEL, run } from "./feature.mjs";

const connect = (url) =>
  createOpenAICompatible({ name: "yocobit", baseURL: `${url}/v1`, supportsStructuredOutputs: true });

run(features((url) => connect(url)(MODEL)));
