// One answer: it asks the server, takes in what comes, and measures.
//
// The answer's message grows as tokens come: `content` is the text so far. `finish` is absent while
// it runs and then says why it ended: "stop", "length", "stopped" by the reader, or "failed", with
// the reason in `error`. A message without it was interrupted, by leaving the page.
// `usage` is {prompt, cached, completion} in tokens, {firstToken, queue, promptTime} in seconds,
// {tokensPerSecond}, and {isExact}: false until the server has said its own figures.

import { stream } from "./chat.js";

const CHARACTERS_PER_TOKEN = 4; // until the server counts: for English
const STEADY_AFTER_S = 0.05; // from the first token on; a speed before that is chance
const MAX_SEED = 2 ** 31;

export class Answer {
  #abort = new AbortController();
  #messages;
  #settings;
  #begun = performance.now();
  #firstToken;

  /** `settings` are {system} and the request's fields that are not the model's defaults. */
  constructor(messages, { seed, ...settings }) {
    seed ??= crypto.getRandomValues(new Uint32Array(1))[0] % MAX_SEED;
    this.#messages = [...messages];
    this.#settings = { ...settings, seed };
    const usage = { prompt: countTokens(messages).tokens, completion: 0, isExact: false };
    this.message = { role: "assistant", content: "", seed, usage };
  }

  stop() {
    this.#abort.abort();
  }

  /** Seconds since the request, as long as nothing came. */
  get waiting() {
    return this.#firstToken ? undefined : (performance.now() - this.#begun) / 1000;
  }

  /**
   * Run to the end, whatever it is: `onchange` is called whenever the message has changed, and
   * nothing is thrown. `findModel` resolves to the model that is to answer.
   */
  async run(findModel, onchange) {
    const { message } = this;
    let finish = "stop";
    try {
      const model = await findModel();
      message.model = model.id;
      const path = model.isForChat ? "v1/chat/completions" : "v1/completions";
      for await (const event of stream(path, this.#request(model), this.#abort.signal)) {
        finish = event.choices?.[0]?.finish_reason ?? finish;
        this.#take(event);
        onchange();
      }
      message.finish = finish;
    } catch (error) {
      message.finish = error.name === "AbortError" ? "stopped" : "failed";
      if (message.finish === "failed") message.error = error.message;
    }
  }

  #request(model) {
    const { system, ...sampling } = this.#settings;
    const said = model.isForChat
      ? { messages: spoken(this.#messages, system) }
      : { prompt: written(this.#messages) };
    const streaming = { stream: true, stream_options: { include_usage: true } };
    return { model: model.id, ...said, ...sampling, ...streaming };
  }

  #take({ choices, usage }) {
    const text = choices?.[0]?.delta?.content ?? choices?.[0]?.text;
    if (text) this.#count(text);
    if (usage) this.#correct(usage);
  }

  #count(text) {
    const { message } = this;
    const now = performance.now();
    this.#firstToken ??= now;
    message.content += text;
    message.usage.completion += 1;
    message.usage.firstToken = (this.#firstToken - this.#begun) / 1000;
    const elapsed = (now - this.#firstToken) / 1000;
    if (elapsed < STEADY_AFTER_S) return;
    message.usage.tokensPerSecond = (message.usage.completion - 1) / elapsed;
  }

  #correct(said) {
    const { usage } = this.message;
    usage.prompt = said.prompt_tokens;
    usage.cached = said.prompt_tokens_details?.cached_tokens;
    usage.completion = said.completion_tokens;
    usage.queue = said.queue_time;
    usage.promptTime = said.prompt_time;
    usage.isExact = true;
    if (said.completion_time > 0) {
      usage.tokensPerSecond = said.completion_tokens / said.completion_time;
    }
  }
}

/** The messages as the API takes them; what one side said in a row is one message. */
function spoken(messages, system) {
  const said = system ? [{ role: "system", content: system }] : [];
  for (const { role, content } of messages) {
    if (!content.trim()) continue;
    const last = said.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else said.push({ role, content });
  }
  return said;
}

/** The messages as one text, for a model that only goes on with it. */
function written(messages) {
  return messages.map((message) => message.content).join("");
}

/** How many tokens messages have: what was counted, and a guess of what came since. */
export function countTokens(messages) {
  const counted = messages.findLastIndex((message) => message.usage?.completion);
  const { prompt = 0, completion = 0, isExact } = messages[counted]?.usage ?? {};
  const since = written(messages.slice(counted + 1)).length;
  const tokens = prompt + completion + Math.ceil(since / CHARACTERS_PER_TOKEN);
  return { tokens, isExact: isExact === true && since === 0 };
}
