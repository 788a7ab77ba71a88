// The features of the AI SDK for any of its providers.

import { generateText, Output, streamText, tool } from "ai";
import { Clock, DESCRIPTION, N_TOKENS, PROMPT, TOOL } from "./feature.mjs";

export function features(connect) {
  const short = (url) => ({ model: connect(url), prompt: PROMPT, maxOutputTokens: N_TOKENS });
  return {
    text: async (url) => (await generateText(short(url))).text,

    stream: async (url) => {
      const pieces = [];
      for await (const piece of streamText(short(url)).textStream) pieces.push(piece);
      return pieces;
    },

    tools: async (url) => {
      const tools = { [TOOL]: tool({ description: DESCRIPTION, inputSchema: Clock }) };
      const options = { model: connect(url), prompt: PROMPT, tools, toolChoice: "required" };
      const call = (await generateText(options)).toolCalls[0];
      return [call.toolName, call.input];
    },

    json: async (url) => {
      const output = Output.object({ schema: Clock });
      return (await generateText({ model: connect(url), prompt: PROMPT, output })).output;
    },
  };
}
