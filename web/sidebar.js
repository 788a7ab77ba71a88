// The list of conversations. On narrow screens it is a drawer over the page.

import { titleOf } from "./conversation.js";

export class Sidebar {
  /** `rest` is covered by the drawer; `actions` are {open(id), begin(), save()}. */
  constructor({ sidebar, menu, scrim, rest }, actions) {
    this.sidebar = sidebar;
    this.menu = menu;
    this.rest = rest;
    this.list = sidebar.querySelector("ul");
    this.actions = actions;
    sidebar.querySelector(".begin").addEventListener("click", () => this.#leave(actions.begin));
    sidebar.querySelector(".export").addEventListener("click", () => actions.save());
    menu.addEventListener("click", () => this.#toggle(!this.isOpen));
    scrim.addEventListener("click", () => this.#toggle(false));
    matchMedia("(max-width: 50rem)").addEventListener("change", () => this.#toggle(false));
    sidebar.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.isOpen) return;
      event.stopPropagation();
      this.#toggle(false);
      menu.focus();
    });
  }

  get isOpen() {
    return document.body.classList.contains("drawer");
  }

  /** Show conversations; those with an id in `running` have a running answer. */
  show(conversations, current, running) {
    const focused = document.activeElement?.dataset.id;
    const rows = conversations.map((conversation) => this.#row(conversation, current, running));
    this.list.replaceChildren(...rows);
    if (focused) this.list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
    this.sidebar.querySelector(".export").hidden = conversations.length === 0;
  }

  #row(conversation, current, running) {
    const row = document.getElementById("row").content.firstElementChild.cloneNode(true);
    const button = row.querySelector("button");
    const title = titleOf(conversation);
    const isDraft = !conversation.messages.length;
    button.querySelector(".title").textContent = isDraft ? `Draft: ${title}` : title;
    button.title = title;
    button.dataset.id = conversation.id;
    button.classList.toggle("running", running.has(conversation.id));
    if (conversation === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => this.#leave(() => this.actions.open(conversation.id)));
    return row;
  }

  #toggle(isOpen) {
    document.body.classList.toggle("drawer", isOpen);
    this.menu.setAttribute("aria-expanded", isOpen);
    for (const element of this.rest) element.inert = isOpen;
    if (isOpen) this.sidebar.querySelector(".begin").focus();
  }

  #leave(action) {
    this.#toggle(false);
    action();
  }
}
