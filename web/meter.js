// The measurements: speed, time to first token, and memory compared with a Transformer.

import * as units from "./units.js";

const NONE = "–"; // not measured yet
const CHART = { width: 240, height: 96 }; // as the viewBox in index.html

export class Meter {
  constructor(element) {
    this.element = element;
  }

  /**
   * Show the figures of a conversation: its number of `tokens`, counted if `isExact`, and the `usage`
   * of its last answer. `waiting` is the time since a request whose first token has not arrived.
   */
  show(model, { tokens, isExact, usage, waiting }) {
    const first = waiting ?? usage?.firstToken;
    this.#set(".speed .value", usage?.tokensPerSecond ? units.speed(usage.tokensPerSecond) : NONE);
    this.#set(".first .value", first === undefined ? NONE : units.seconds(first));
    this.#set(".context .value", `${about(tokens, isExact)}${units.count(tokens)}`);
    this.#set(".context .most", model?.context ? `of ${units.count(model.context)}` : "");
    this.#find(".first").title = usage?.isExact ? breakdown(usage) : "";
    const isMeasured = model?.isMeasured === true;
    this.#find(".memory").hidden = !isMeasured;
    this.#find(".growth").hidden = !isMeasured || !model.context;
    if (isMeasured) this.#showMemory(model, tokens, isExact);
  }

  #showMemory(model, tokens, isExact) {
    const isPreview = !tokens && model.context > 0;
    const at = isPreview ? model.context : tokens;
    const ours = model.sessionBytes(at);
    const transformers = model.transformerBytes(at);
    const most = Math.max(ours, transformers, 1);
    this.#set(".memory .at", `${about(at, isExact || isPreview)}${units.count(at)} tokens`);
    this.#bar(".ours", ours, most);
    this.#bar(".transformers", transformers, most);
    const isLess = ours <= transformers;
    this.#set(".ratio .value", units.ratio(most, Math.min(ours, transformers) || 1));
    this.#set(".ratio .unit", isLess ? "times less" : "times more");
    this.#set(".ratio .until", isLess ? "" : `less from ${units.count(crossing(model))} tokens on`);
    this.#find(".ratio").hidden = !transformers;
    if (model.context) this.#showGrowth(model, tokens);
  }

  #bar(name, size, most) {
    this.#set(`${name} .value`, units.bytes(size));
    this.#find(`${name} .fill`).style.width = `${(100 * size) / most}%`;
  }

  /** Draw both lines of bytes over tokens, up to the context length, and the current position. */
  #showGrowth(model, tokens) {
    const most = Math.max(model.transformerBytes(model.context), model.sessionBytes(model.context));
    const x = (n) => (CHART.width * Math.min(n, model.context)) / model.context;
    const y = (size) => CHART.height * (1 - size / most);
    const line = (bytes) => `M0 ${y(bytes(0))}L${CHART.width} ${y(bytes(model.context))}`;
    const ours = (n) => model.sessionBytes(n);
    const transformers = (n) => model.transformerBytes(n);
    this.#find("path.ours").setAttribute("d", line(ours));
    this.#find("path.transformers").setAttribute("d", line(transformers));
    this.#find("path.now").setAttribute("d", `M${x(tokens)} ${CHART.height}V0`);
    for (const [name, bytes] of [["ours", ours], ["transformers", transformers]]) {
      const dot = this.#find(`circle.${name}`);
      dot.setAttribute("cx", x(tokens));
      dot.setAttribute("cy", y(bytes(Math.min(tokens, model.context))));
    }
    this.#set(".growth .end", units.count(model.context));
    this.#set(".growth .top", units.bytes(most));
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }

  #set(selector, text) {
    const node = this.#find(selector);
    if (node.textContent !== text) node.textContent = text;
    node.classList.toggle("none", text === NONE);
  }
}

function about(n, isExact) {
  return n && !isExact ? "~" : "";
}

/** Return the number of tokens above which the model needs less memory than a Transformer. */
function crossing({ stateBytes, bytesPerToken, transformerBytesPerToken }) {
  return Math.ceil(stateBytes / (transformerBytesPerToken - bytesPerToken));
}

/** Return the parts of the time to first token, as the server reports them. */
function breakdown({ queue = 0, promptTime = 0, prompt, cached = 0 }) {
  const prefilled = units.count(prompt - cached);
  return `${units.seconds(queue)} in the queue, ${units.seconds(promptTime)} to prefill ${prefilled} tokens`;
}
