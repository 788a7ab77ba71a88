// OpenAI's client for Node.js.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { Clock, clockSchema, DESCRIPTION, MODEL, N_TOKENS, run, SEA, TOOL } from "./feature.mjs";

const completions = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" }).chat.completions;
const body = { model: MODEL, messages: SEA };
const short = { ...body, seed: 1, max_tokens: N_TOKENS };

run({
  text: async (url) => (await completions(url).create(short)).choices[0].message.content,

  stream: async (url) => {
    const pieces = [];
    for await (const chunk of await completions(url).create({ ...short, stream: true })) {
      pieces.push(chunk.choices[0].delta.content ?? "");
    }
    return pieces;
  },

  tools: async (url) => {
    const definition = { name: TOOL, description: DESCRIPTION, parameters: clockSchema };
    const answer = await completions(url).create({
      ...body,
      tools: [{ type: "function", function: definition }],
      tool_choice: "required",
    });
    const call = answer.choices[0].message.tool_calls[0].function;
    return [call.name, JSON.parse(call.arguments)];
  },

  json: async (url) => {
    const format = zodResponseFormat(Clock, "clock");
    const answer = await completions(url).parse({ ...body, response_format: format });
    return answer.choices[0].message.parsed;
  },
});
