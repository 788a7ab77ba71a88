// The bar at the top: model selection and actions on the conversation.

const KEY = "yocobit.model";

export class Header {
  /** `actions` are {choose(model), set(), save(), remove()}. */
  constructor(element, actions) {
    this.name = element.querySelector(".name");
    this.select = element.querySelector("select");
    this.save = element.querySelector(".save");
    this.remove = element.querySelector(".remove");
    this.actions = actions;
    this.select.addEventListener("change", () => this.#choose(this.select.value));
    element.querySelector(".set").addEventListener("click", () => actions.set());
    this.save.addEventListener("click", () => actions.save());
    this.remove.addEventListener("click", () => actions.remove());
  }

  /** Whether there is something to export or to delete. */
  set canSave(canSave) {
    this.save.hidden = !canSave;
    this.remove.hidden = !canSave;
  }

  /** List the models; select the one selected last, otherwise the first. */
  offer(models) {
    this.models = models;
    this.select.replaceChildren(...models.map(({ id }) => new Option(id, id)));
    this.select.hidden = models.length < 2;
    this.name.hidden = models.length > 1;
    this.name.textContent = models[0]?.id ?? "no model";
    this.#choose(remembered());
  }

  #choose(id) {
    const model = this.models.find((model) => model.id === id) ?? this.models[0];
    if (!model) return;
    this.select.value = model.id;
    try {
      if (this.models.length > 1) localStorage.setItem(KEY, model.id);
    } catch {
      // no storage: kept until the page is closed
    }
    this.actions.choose(model);
  }
}

function remembered() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}
