// What every JavaScript program of this directory needs; see feature.py.

import { z } from "zod";

export const MODEL = "tiny";
export const PROMPT = "Tell me about the sea.";
export const SEA = [{ role: "user", content: PROMPT }];
export const N_TOKENS = 24;
export const TOOL = "show_clock";
export const DESCRIPTION = "Show a clock.";
export const Clock = z.object({ zone: z.enum(["UTC", "CET"]), is_24_hours: z.boolean() });
export const clockSchema = z.toJSONSchema(Clock);

export async function run(features) {
  const found = {};
  for (const [name, feature] of Object.entries(features)) {
    try {
      found[name] = { result: await feature(process.argv[2]) };
    } catch (error) {
      found[name] = { error: error.stack };
    }
  }
  console.log(JSON.stringify(found));
}
