// Copying text, also over plain http, where the page has no clipboard API.

/** Copy a text and show that on a button for a moment. */
export async function copy(text, button) {
  await write(text);
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1500);
}

async function write(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
