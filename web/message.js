// One message on the page: its text, its actions and its error.

import { generatedTokens } from "./answer.js";
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
   * `actions` are {again(), retry(), resume(), drop(), canDrop(), version(message, to),
   * edit(message, text), save(), all()}. `isText`: the messages are parts of one text, which `all`
   * returns; it is shown as it is, and edited and copied as a whole.
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
    find(".edit").addEventListener("click", () => this.startEdit());
    for (const name of ["again", "retry", "resume", "drop"]) {
      find(`.${name}`).addEventListener("click", () => actions[name]());
    }
    for (const [name, step] of [["previous", -1], ["next", 1]]) {
      const show = () => actions.version(message, message.versions.at + step);
      find(`.${name}`).addEventListener("click", show);
    }
    this.#prepareEditor();
    if (message.edit !== undefined) this.#edit(message.edit); // an edit that was not sent
  }

  /** Whether it has an edit button. */
  get isEditable() {
    return !this.element.querySelector(".edit").hidden;
  }

  /** The text to copy and edit. */
  get text() {
    return this.isText ? this.actions.all() : this.message.content;
  }

  startEdit() {
    this.#edit(this.text);
    this.form.querySelector("textarea").focus();
  }

  /** Show the message as it is now; `answer` is given while it is being generated. */
  update(answer, isLast) {
    const { message } = this;
    const isRunning = answer !== undefined;
    if (message.role === "assistant" && !this.isText) {
      renderMarkdown(this.body, message.content, isRunning);
    } else if (this.body.textContent !== message.content) {
      this.body.textContent = message.content;
    }
    this.element.setAttribute("aria-busy", isRunning);
    this.element.classList.toggle("running", isRunning);
    this.element.classList.toggle("waiting", answer?.waiting !== undefined);
    this.element.classList.toggle("last", isLast);
    this.element.classList.toggle("dropped", message.dropped === true);
    this.#offer(isLast);
    this.#showProblem(isLast);
    this.note.textContent = isRunning ? waitingNote(answer) : endNote(message);
  }

  /** Show the actions that apply to the message. */
  #offer(isLast) {
    const { role, content, error, finish, versions } = this.message;
    const button = (name) => this.element.querySelector(`footer .${name}`);
    button("copy").hidden = !content;
    button("edit").hidden = this.isText ? !isLast : role === "assistant";
    button("again").hidden = role !== "assistant" || !isLast || error !== undefined;
    const isCut = role === "assistant" && content !== "" && finish !== "stop";
    button("resume").hidden = !isCut || !isLast || this.isText;
    button("versions").hidden = !versions;
    if (!versions) return;
    const { at, tails } = versions;
    button("which").textContent = `${at + 1} of ${tails.length}`;
    button("previous").disabled = at === 0;
    button("next").disabled = at === tails.length - 1;
  }

  /** Show why there is no answer, or no more of it, and the way out. */
  #showProblem(isLast) {
    const { error, isFull } = this.message;
    const find = (selector) => this.problem.querySelector(selector);
    this.problem.hidden = error === undefined && !(isFull && isLast);
    if (this.problem.hidden) return;
    find("p").textContent = error ?? "The context is full.";
    find(".retry").hidden = !isLast || error === undefined;
    find(".drop").hidden = !isLast || !isFull || !this.actions.canDrop();
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
function endNote(message) {
  if (message.role !== "assistant") return "";
  const end = ENDS[message.finish] ?? "interrupted";
  const n = generatedTokens(message);
  if (!n) return end;
  const tokens = n === 1 ? "1 token" : `${units.count(n)} tokens`;
  const { tokensPerSecond } = message.usage;
  const speed = tokensPerSecond ? ` at ${units.speed(tokensPerSecond)} per second` : "";
  return `${tokens}${speed}${end && `, ${end}`}`;
}
