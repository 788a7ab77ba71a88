// Vercel's AI SDK with its provider for OpenAI, which uses responses.

import { createOpenAI } from "@ai-sdk/openai";
import { features } from "./ai_sdk_features.mjs";
import { MODEL, run } from "./feature.mjs";

run(features((url) => createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" })(MODEL)));
