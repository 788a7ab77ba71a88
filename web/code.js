// A code block: its language, a copy button, and its text verbatim.

import { copy } from "./clipboard.js";
import { highlight } from "./highlighting.js";

export function codeBlock(text, language) {
  const figure = document.getElementById("code").content.firstElementChild.cloneNode(true);
  figure.querySelector(".language").textContent = language;
  const code = figure.querySelector("code");
  code.textContent = text;
  const button = figure.querySelector("button");
  button.addEventListener("click", () => copy(code.textContent, button));
  return figure;
}

/** Change the text of a block; false, unchanged, if its language differs. */
export function setCode(figure, text, language) {
  if (figure.querySelector(".language").textContent !== language) return false;
  const code = figure.querySelector("code");
  if (code.textContent !== text) code.textContent = text;
  return true;
}

/** Colour the complete code blocks in a node. */
export function highlightCode(node) {
  const figures = node.matches?.(".code") ? [node] : (node.querySelectorAll?.(".code") ?? []);
  for (const figure of figures) {
    highlight(figure.querySelector("code"), figure.querySelector(".language").textContent);
  }
}
