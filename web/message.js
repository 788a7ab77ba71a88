// One message on the page: its text, its actions and its error.

import { copy } from "./clipboard.js";
import { renderMarkdown } from "./markdown.js";
import { fit, isEnter } from "./textarea.js";
import * as units from "./units.js";

const ENDS = {
  length: "reached max tokens",
  stopped: "stopped",
  failed: "",
  stop: "",
};

export class MessageView {
  /**
   * `actions` are {again(), edit(message, text), save(), all()}. `isText`: the messages are parts
   * of one text, which `all` returns; it is shown as it is, and edited and copied as a whole.
   */
  constructor(message, isText, actions) {
    this.message = message;
    this.isText = isText;
    this.actions = actions;
    const { content } = document.getElementById("message");
    this.element = content.firstElementChild.cloneNode(true);
    // Whitespace between its parts would show between the parts of a text.
    this.element.replaceChildren(...this.element.children);
    const find = (selector) => this.element.querySelector(selector);
    this.body = find(".body");
    this.note = find(".note");
    this.problem = find(".problem");
    this.form = find(".editor");
    const isAnswer = message.role === "assistant";
    this.element.classList.add(isAnswer ? "answer" : "question");
    this.element.setAttribute("aria-label", isAnswer ? (message.model ?? "Answer") : "You");
    find(".copy").addEventListener("click", ({ currentTarget }) => copy(this.text, currentTarget));
    find(".edit").addEventListener("click", () => {
      this.#edit(this.text);
      this.form.querySelector("textarea").focus();
    });
    find(".again").addEventListener("click", () => actions.again());
    find(".retry").addEventListener("click", () => actions.again());
    this.#prepareEditor();
    if (message.edit !== undefined) this.#edit(message.edit); // an edit that was not sent
  }

  /** The text to copy and edit. */
  get text() {
    return this.isText ? this.actions.all() : this.message.content;
  }

  /** Show the message as it is now; `answer` is given while it is being generated. */
  update(answer, isLast) {
    const { message } = this;
    if (message.role === "assistant" && !this.isText) renderMarkdown(this.body, message.content);
    else if (this.body.textContent !== message.content) this.body.textContent = message.content;
    const isRunning = answer !== undefined;
    this.element.setAttribute("aria-busy", isRunning);
    this.element.classList.toggle("running", isRunning);
    this.element.classList.toggle("waiting", isRunning && !message.content);
    this.element.classList.toggle("last", isLast);
    this.#offer(isLast);
    this.problem.hidden = message.error === undefined;
    this.problem.querySelector("p").textContent = message.error ?? "";
    this.problem.querySelector("button").hidden = !isLast;
    this.note.textContent = isRunning ? waitingNote(answer) : endNote(message);
  }

  /** Show the actions that apply to the message. */
  #offer(isLast) {
    const { role, content, error } = this.message;
    const button = (name) => this.element.querySelector(`footer .${name}`);
    button("copy").hidden = !content;
    button("edit").hidden = this.isText ? !isLast : role === "assistant";
    button("again").hidden = role !== "assistant" || !isLast || error !== undefined;
  }

  #prepareEditor() {
    const area = this.form.querySelector("textarea");
    area.addEventListener("input", () => {
      this.message.edit = area.value;
      this.actions.save();
      fit(area);
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.#endEdit();
      } else if (isEnter(event)) {
        event.preventDefault();
        this.#submit(area.value);
      }
    });
    this.form.querySelector(".cancel").addEventListener("click", () => this.#endEdit());
    this.form.querySelector(".submit").addEventListener("click", () => this.#submit(area.value));
  }

  #edit(text) {
    const area = this.form.querySelector("textarea");
    this.element.classList.add("editing");
    area.value = text;
    requestAnimationFrame(() => fit(area));
  }

  #submit(text) {
    if (!text.trim()) return;
    this.#endEdit();
    this.actions.edit(this.message, text);
  }

  #endEdit() {
    delete this.message.edit;
    this.element.classList.remove("editing");
    this.actions.save();
  }
}

function waitingNote({ waiting }) {
  return waiting > 1 ? `waiting for ${Math.floor(waiting)} s` : "";
}

/** The note below a complete answer. */
function endNote({ role, usage, finish }) {
  if (role !== "assistant") return "";
  const end = ENDS[finish] ?? "interrupted";
  if (!usage?.completion) return end;
  const tokens = usage.completion === 1 ? "1 token" : `${units.count(usage.completion)} tokens`;
  const { tokensPerSecond } = usage;
  const speed = tokensPerSecond ? ` at ${units.speed(tokensPerSecond)} per second` : "";
  return `${tokens}${speed}${end && `, ${end}`}`;
}
