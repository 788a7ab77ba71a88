// The empty conversation: the model's figures.

import * as units from "./units.js";

export function welcome(element, model) {
  const { id = "", parameters, weights, bytes, context, cache, bytesPerToken } = model ?? {};
  const facts = [
    ["Parameters", parameters && units.parameters(parameters)],
    ["Weights", joined(weights, bytes && units.bytes(bytes))],
    ["Context", context && `${units.count(context)} tokens`],
    ["Cache", joined(cache, bytesPerToken && `${units.bytes(bytesPerToken)} per token`)],
  ];
  element.querySelector("h2").textContent = id;
  element.querySelector("dl").replaceChildren(...facts.filter(([, fact]) => fact).map(row));
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
