// One answer: sends the request, appends the streamed tokens, and measures.
//
// The answer's message grows as tokens arrive: `content` is the text so far. `finish` is absent while
// it is generated and then is the reason: "stop", "length", "stopped" by the user, or "failed", with
// the message in `error`. A stored message without `finish` was interrupted by closing the page.
// `isFull`: the context had no room for the request, or for more of the answer. `isContinuation`: the
// last request continued the answer. `usage` is of the last request: {prompt, cached, completion} in
// tokens, {before}, the tokens that earlier requests generated, {dropped}, the number of messages that
// were not sent, {firstToken, queue, promptTime} in seconds, {tokensPerSecond}, and {isExact}: false
// until the server has sent its own figures.

import { stream } from "./chat.js";
import { sentMessages } from "./turns.js";

const CHARACTERS_PER_TOKEN = 4; // an estimate for English, until the server reports the count
const STEADY_AFTER_S = 0.05; // after the first token; earlier speeds are noise
const MAX_SEED = 2 ** 31;

export class Answer {
  #abort = new AbortController();
  #messages;
  #settings;
  #startedAt = performance.now();
  #firstToken;

  /**
   * `settings` are {system} and the request's fields that are not the model's defaults. With
   * `continued`, the last of the messages, the answer is appended to it.
   */
  constructor(messages, { seed, ...settings }, continued) {
    seed ??= crypto.getRandomValues(new Uint32Array(1))[0] % MAX_SEED;
    this.#messages = sentMessages(messages);
    this.#settings = { ...settings, seed };
    const usage = { prompt: countTokens(messages).tokens, completion: 0, isExact: false };
    usage.dropped = messages.length - this.#messages.length;
    this.message = continued ?? { role: "assistant", content: "" };
    const { message } = this;
    if (continued) usage.before = generatedTokens(message);
    for (const name of ["finish", "error", "isFull", "isContinuation"]) delete message[name];
    if (continued) message.isContinuation = true;
    Object.assign(message, { seed, usage });
  }

  stop() {
    this.#abort.abort();
  }

  /** Seconds since the request, until the first token. */
  get waiting() {
    return this.#firstToken ? undefined : (performance.now() - this.#startedAt) / 1000;
  }

  /**
   * Run to completion or failure: `onchange` is called whenever the message has changed, and nothing
   * is thrown. `findModel` resolves to the model to request.
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
        this.#add(event);
        onchange();
      }
      message.finish = finish;
      const { prompt, completion } = message.usage;
      if (finish === "length" && prompt + completion >= model.context) message.isFull = true;
    } catch (error) {
      message.finish = error.name === "AbortError" ? "stopped" : "failed";
      if (message.finish === "failed") message.error = error.message;
      if (error.code === "context_length_exceeded") message.isFull = true;
    }
  }

  #request(model) {
    const { system, ...sampling } = this.#settings;
    const input = model.isForChat
      ? { messages: chatMessages(this.#messages, system) }
      : { prompt: joinedText(this.#messages) };
    if (model.isForChat && this.message.isContinuation) {
      Object.assign(input, { continue_final_message: true, add_generation_prompt: false });
    }
    const streaming = { stream: true, stream_options: { include_usage: true } };
    return { model: model.id, ...input, ...sampling, ...streaming };
  }

  #add({ choices, usage }) {
    const text = choices?.[0]?.delta?.content ?? choices?.[0]?.text;
    if (text) this.#append(text);
    if (usage) this.#correct(usage);
  }

  #append(text) {
    const { message } = this;
    const now = performance.now();
    this.#firstToken ??= now;
    message.content += text;
    message.usage.completion += 1;
    message.usage.firstToken = (this.#firstToken - this.#startedAt) / 1000;
    const elapsed = (now - this.#firstToken) / 1000;
    if (elapsed < STEADY_AFTER_S) return;
    message.usage.tokensPerSecond = (message.usage.completion - 1) / elapsed;
  }

  #correct(reported) {
    const { usage } = this.message;
    usage.prompt = reported.prompt_tokens;
    usage.cached = reported.prompt_tokens_details?.cached_tokens;
    usage.completion = reported.completion_tokens;
    usage.queue = reported.queue_time;
    usage.promptTime = reported.prompt_time;
    usage.isExact = true;
    // The time is from the first token on, so one token has no speed.
    const { completion_tokens: n, completion_time: elapsed } = reported;
    if (n > 1 && elapsed > 0) usage.tokensPerSecond = (n - 1) / elapsed;
    else delete usage.tokensPerSecond;
  }
}

/** Return the messages in the API's form; consecutive messages of one role are merged. */
function chatMessages(messages, system) {
  const merged = system ? [{ role: "system", content: system }] : [];
  for (const { role, content } of messages) {
    if (!content.trim()) continue;
    const last = merged.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else merged.push({ role, content });
  }
  return merged;
}

/** Return the messages as one text, for a model that only completes text. */
function joinedText(messages) {
  return messages.map((message) => message.content).join("");
}

/** Return the tokens of an answer, from all requests that generated it. */
export function generatedTokens({ usage }) {
  return (usage?.before ?? 0) + (usage?.completion ?? 0);
}

/**
 * Return the tokens of the messages that are sent: the server's count, if it was of the same ones, plus
 * an estimate for the text after it.
 */
export function countTokens(messages) {
  const sent = sentMessages(messages);
  const dropped = messages.length - sent.length;
  const counted = sent.findLastIndex(
    ({ usage }) => usage?.completion && (usage.dropped ?? 0) === dropped,
  );
  const { prompt = 0, completion = 0, isExact } = sent[counted]?.usage ?? {};
  const since = joinedText(sent.slice(counted + 1)).length;
  const tokens = prompt + completion + Math.ceil(since / CHARACTERS_PER_TOKEN);
  return { tokens, isExact: isExact === true && since === 0 };
}
