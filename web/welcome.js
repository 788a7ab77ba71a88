// The empty conversation: the model's figures; for the packaged model also what it is, and messages to try.

import * as units from "./units.js";

/** `send` sends a message that the user has chosen. */
export function welcome(element, model, send) {
  const { id = "", parameters, weights, bytes, context, cache, bytesPerToken } = model ?? {};
  const facts = [
    ["Parameters", parameters && units.parameters(parameters)],
    ["Weights", joined(weights, bytes && units.bytes(bytes))],
    ["Context", context && `${units.count(context)} tokens`],
    ["Cache", joined(cache, bytesPerToken && `${units.bytes(bytesPerToken)} per token`)],
  ];
  element.querySelector("h2").textContent = id;
  element.querySelector("dl").replaceChildren(...facts.filter(([, fact]) => fact).map(row));
  element.querySelector(".about").textContent = model?.about ?? "";
  element.querySelector(".better").hidden = !model?.about;
  const prompts = (model?.prompts ?? []).map((prompt) => button(prompt, send));
  element.querySelector(".prompts").replaceChildren(...prompts);
}

function button(prompt, send) {
  const node = document.createElement("button");
  node.textContent = prompt;
  node.addEventListener("click", () => send(prompt));
  return node;
}

function joined(...parts) {
  return parts.filter(Boolean).join(", ");
}

function row([name, fact]) {
  const group = document.createElement("div");
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = name;
  description.textContent = fact;
  group.append(term, description);
  return group;
}
