// Copying text, also where the page is not served over https and has no clipboard of its own.

/** Copy a text and let a button show for a moment that it was. */
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
