// The message input. Its text is kept until it is sent.

import { acceptFiles } from "./files.js";
import { fit, isEnter } from "./textarea.js";

export class Composer {
  #isRunning = false;
  #isForText = false;

  /** `actions` are {send(text), stop(), draft(text), add(files), editLast()}. */
  constructor(form, actions) {
    this.area = form.querySelector("textarea");
    this.send = form.querySelector(".send");
    this.stop = form.querySelector(".stop");
    this.actions = actions;
    // A phone's keyboard has no Shift+Enter: there, Enter is a new line and the button sends.
    this.isTouched = matchMedia("(pointer: coarse)").matches;
    this.area.addEventListener("input", () => {
      actions.draft(this.area.value);
      this.#show();
    });
    this.area.addEventListener("keydown", (event) => {
      if (!isEnter(event) || this.isTouched) return;
      event.preventDefault();
      this.#submit();
    });
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "ArrowUp" && !this.text && !event.isComposing) {
        event.preventDefault();
        actions.editLast();
      }
    });
    const files = form.querySelector("[type=file]");
    form.querySelector(".attach").addEventListener("click", () => files.click());
    files.addEventListener("change", () => {
      actions.add([...files.files]);
      files.value = "";
    });
    acceptFiles(this.area, (files) => actions.add(files));
    this.send.addEventListener("click", () => this.#submit());
    this.stop.addEventListener("click", () => actions.stop());
  }

  get text() {
    return this.area.value;
  }

  set text(text) {
    this.area.value = text;
    this.#show();
  }

  /** Append a text, as if the user had written it. */
  append(text) {
    const before = this.text.trimEnd();
    this.text = before ? `${before}\n\n${text}` : text;
    this.actions.draft(this.text);
    this.area.focus();
    this.area.scrollTop = this.area.scrollHeight;
  }

  /** `isForText`: for a model that completes text, also when nothing is added to it. */
  set state({ isRunning, isForText, hasText }) {
    this.#isRunning = isRunning;
    this.#isForText = isForText && hasText;
    const [label, placeholder] = isForText
      ? ["Continue", hasText ? "More text (optional)" : "The start of a text"]
      : ["Send", "Message"];
    this.area.placeholder = placeholder;
    this.send.title = `${label} (Enter)`;
    this.send.setAttribute("aria-label", label);
    this.#show();
  }

  focus() {
    if (!this.isTouched) this.area.focus();
  }

  #submit() {
    if (this.#isRunning || this.send.disabled) return;
    const { text } = this;
    this.text = "";
    this.actions.send(text);
  }

  #show() {
    this.send.hidden = this.#isRunning;
    this.stop.hidden = !this.#isRunning;
    this.send.disabled = !this.text.trim() && !this.#isForText;
    fit(this.area);
  }
}
