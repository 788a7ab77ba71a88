// Settings: the system message and sampling parameters. Empty means the model's default.

const KEY = "yocobit.settings";

/** The numbers that can be set, as the API names them. */
export const FIELDS = [
  {
    name: "temperature", label: "Temperature", min: 0, max: 100, preset: 0.8,
    hint: "Higher is more random; 0 always picks the most probable token.",
  },
  {
    name: "top_p", label: "Top p", above: 0, max: 1, preset: 1,
    hint: "Sample from the most probable tokens whose probabilities sum to this.",
  },
  {
    name: "top_k", label: "Top k", min: 0, max: 1_000_000, isWhole: true, preset: 0,
    hint: "Sample from this many of the most probable tokens; 0 means all.",
  },
  {
    name: "min_p", label: "Min p", min: 0, max: 1, preset: 0,
    hint: "Exclude tokens below this fraction of the highest probability.",
  },
  {
    name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 100, preset: 1,
    hint: "Above 1, tokens that occurred become less probable.",
  },
  {
    name: "max_tokens", label: "Max tokens", min: 1, max: 1_000_000, isWhole: true,
    preset: "default", hint: "Length limit of an answer.",
  },
  {
    name: "seed", label: "Seed", min: 0, max: 2 ** 53 - 1, isWhole: true, preset: "random",
    hint: "The same seed and settings give the same answer.",
  },
];

/** Return the number in a field; undefined if empty, RangeError if invalid. */
export function parse(field, text) {
  const typed = text.trim().replace(",", ".");
  if (!typed) return undefined;
  const value = Number(typed);
  const { min = field.above, max, isWhole, above } = field;
  const isInside = value >= min && value <= max && value !== above;
  if (!isInside || (isWhole && !Number.isInteger(value))) {
    const kind = isWhole ? "a whole number" : "a number";
    const range = above === undefined ? `from ${min} to ${max}` : `above ${above}, at most ${max}`;
    throw new RangeError(`Must be ${kind} ${range}.`);
  }
  return value;
}

/** Return the valid settings that are stored in this browser. */
export function loadSettings() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    // no storage, or invalid: defaults
  }
  const settings = typeof kept.system === "string" && kept.system ? { system: kept.system } : {};
  for (const field of FIELDS) {
    try {
      const value = parse(field, String(kept[field.name] ?? ""));
      if (value !== undefined) settings[field.name] = value;
    } catch {
      // out of a range that has changed
    }
  }
  return settings;
}

/** The dialog of the settings; `values` always holds valid ones. */
export class SettingsDialog {
  constructor(dialog) {
    this.dialog = dialog;
    this.values = loadSettings();
    this.system = dialog.querySelector("[name=system]");
    this.system.value = this.values.system ?? "";
    this.system.addEventListener("input", () => {
      this.#set("system", this.system.value.trim() || undefined);
    });
    this.inputs = FIELDS.map((field) => this.#addField(field));
    dialog.querySelector(".reset").addEventListener("click", () => this.#reset());
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // the backdrop
    });
  }

  open() {
    this.dialog.showModal();
  }

  /** Show the model's defaults as placeholders. */
  describe(model) {
    FIELDS.forEach((field, i) => {
      this.inputs[i].placeholder = model?.sampling[field.name] ?? field.preset;
    });
    this.dialog.classList.toggle("for-text", model?.isForChat === false);
  }

  #addField(field) {
    const row = document.getElementById("field").content.firstElementChild.cloneNode(true);
    const [label, input, hint] = row.querySelectorAll("label, input, .hint");
    const id = `setting-${field.name}`;
    label.textContent = field.label;
    label.htmlFor = id;
    hint.id = `${id}-hint`;
    Object.assign(input, { id, name: field.name, value: this.values[field.name] ?? "" });
    input.inputMode = field.isWhole ? "numeric" : "decimal";
    input.setAttribute("aria-describedby", hint.id);
    const check = () => this.#check(field, input, hint);
    input.addEventListener("input", check);
    check();
    this.dialog.querySelector(".fields").append(row);
    return input;
  }

  /** Apply a valid value; show an error for an invalid one. */
  #check(field, input, hint) {
    let problem = "";
    try {
      this.#set(field.name, parse(field, input.value));
    } catch (error) {
      problem = error.message;
    }
    hint.textContent = problem || field.hint;
    input.setAttribute("aria-invalid", problem !== "");
  }

  #set(name, value) {
    if (value === undefined) delete this.values[name];
    else this.values[name] = value;
    try {
      localStorage.setItem(KEY, JSON.stringify(this.values));
    } catch {
      // no storage: kept until the page is closed
    }
  }

  #reset() {
    for (const input of [this.system, ...this.inputs]) {
      input.value = "";
      input.dispatchEvent(new Event("input"));
    }
  }
}
