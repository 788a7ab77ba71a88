// Short words to the reader: in a line that can be seen, or only for a screen reader.

const SHOWN_MS = 8000;

export class Notice {
  #timer;
  #action;

  /** `bar` is seen and read out; `status` is only read out. */
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

  /** Show a text for a while, with something that the reader may do about it. */
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
