// The server's models and their properties.

import { get } from "./chat.js";

export class Model {
  constructor({ id, context_window: context, yocobit = {} }) {
    this.id = id;
    this.context = context;
    /** Of the packaged model: a sentence about it, and messages to try. */
    this.about = yocobit.about;
    this.prompts = yocobit.prompts ?? [];
    this.parameters = yocobit.parameters;
    this.weights = yocobit.weights;
    this.bytes = yocobit.model_bytes;
    this.cache = yocobit.cache;
    this.sampling = yocobit.sampling ?? {};
    /** Whether it was trained on conversations; otherwise it completes text. */
    this.isForChat = yocobit.has_chat_template ?? true;
    this.bytesPerToken = yocobit.cache_bytes_per_token;
    this.transformerBytesPerToken = yocobit.transformer_cache_bytes_per_token;
    this.stateBytes = yocobit.state_bytes ?? 0;
  }

  /** Whether its cache sizes are known. */
  get isMeasured() {
    return this.bytesPerToken !== undefined && this.transformerBytesPerToken !== undefined;
  }

  /** Bytes of a session of `tokens`. */
  sessionBytes(tokens) {
    return this.stateBytes + this.bytesPerToken * tokens;
  }

  /** Bytes of the KV cache of a Transformer of the same shape. */
  transformerBytes(tokens) {
    return this.transformerBytesPerToken * tokens;
  }
}

export async function loadModels() {
  const { data } = await get("v1/models");
  return data.map((model) => new Model(model));
}
