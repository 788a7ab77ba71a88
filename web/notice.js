// Short messages to the user: in a visible line, or for screen readers only.

const SHOWN_MS = 8000;

export class Notice {
  #timer;
  #action;

  /** `bar` is visible and announced; `status` is only announced. */
  constructor(bar, status) {
    this.bar = bar;
    this.status = status;
    this.text = bar.querySelector("p");
    this.button = bar.querySelector("button");
    this.button.addEventListener("click", () => {
      const action = this.#action;
      this.hide();
      action();
    });
  }

  /** Show a text for SHOWN_MS, with an action. */
  show(text, label, action) {
    this.keep(text, label, action);
    this.#timer = setTimeout(() => this.hide(), SHOWN_MS);
  }

  /** Show a text until it is hidden. */
  keep(text, label = "Close", action = () => {}) {
    clearTimeout(this.#timer);
    this.#action = action;
    this.text.textContent = text;
    this.button.textContent = label;
    this.bar.hidden = false;
  }

  hide() {
    clearTimeout(this.#timer);
    this.bar.hidden = true;
  }

  say(text) {
    this.status.textContent = text;
  }
}
