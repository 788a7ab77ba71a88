// The models of the server, and what they say of themselves.

import { get } from "./chat.js";

export class Model {
  constructor({ id, context_window: context, yocobit = {} }) {
    this.id = id;
    this.context = context;
    this.parameters = yocobit.parameters;
    this.weights = yocobit.weights;
    this.bytes = yocobit.model_bytes;
    this.cache = yocobit.cache;
    this.sampling = yocobit.sampling ?? {};
    /** Whether it was trained on conversations; if not, it goes on with a text. */
    this.isForChat = yocobit.has_chat_template ?? true;
    this.bytesPerToken = yocobit.cache_bytes_per_token;
    this.transformerBytesPerToken = yocobit.transformer_cache_bytes_per_token;
    this.stateBytes = yocobit.state_bytes ?? 0;
  }

  /** Whether it says what its cache takes. */
  get isMeasured() {
    return this.bytesPerToken !== undefined && this.transformerBytesPerToken !== undefined;
  }

  /** Bytes of a session with so many tokens. */
  sessionBytes(tokens) {
    return this.stateBytes + this.bytesPerToken * tokens;
  }

  /** Bytes that a Transformer of the same shape would take for them. */
  transformerBytes(tokens) {
    return this.transformerBytesPerToken * tokens;
  }
}

export async function loadModels() {
  const { data } = await get("v1/models");
  return data.map((model) => new Model(model));
}
