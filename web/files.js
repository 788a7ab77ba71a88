// Text files for a message: dropped on the page, pasted or chosen.

const MAX_BYTES = 256 * 1024;
const MAX_ARCHIVE_BYTES = 16 * 1024 * 1024; // of exported conversations

/** A file that cannot be used, with a message for the user. */
export class FileError extends Error {}

/** Return the text of a file; FileError if it is too large or not text in UTF-8. */
export async function readText(file) {
  const limit = /\.json$/i.test(file.name) ? MAX_ARCHIVE_BYTES : MAX_BYTES;
  checkSize(file.size, limit);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return text;
  } catch {
    // not UTF-8, or a directory
  }
  throw new FileError("must be text in UTF-8");
}

/** Return a file's text as part of a message: its name, and a fence that its text does not close. */
export function quoted(name, text) {
  checkSize(text.length, MAX_BYTES);
  const longest = Math.max(2, ...(text.match(/`{3,}/g) ?? []).map(({ length }) => length));
  const fence = "`".repeat(longest + 1);
  const kind = /\.([a-z0-9]+)$/i.exec(name)?.[1] ?? "";
  return `${name}:\n${fence}${kind}\n${text.replace(/\n$/, "")}\n${fence}\n`;
}

function checkSize(size, limit) {
  if (size <= limit) return;
  const kilobytes = (n) => `${Math.ceil(n / 1024)} KiB`;
  throw new FileError(`must be at most ${kilobytes(limit)} but is ${kilobytes(size)}`);
}

/**
 * Call `onfiles` with files that are dropped on the page or pasted into `area`. While files are
 * dragged over the page, it has the class "dropping".
 */
export function acceptFiles(area, onfiles) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = (isDropping) => document.body.classList.toggle("dropping", isDropping);
  addEventListener("dragover", (event) => {
    if (!hasFiles(event) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    show(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? show(false));
  addEventListener("drop", (event) => {
    show(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    onfiles([...event.dataTransfer.files]);
  });
  area.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length || event.clipboardData.getData("text")) return;
    event.preventDefault();
    onfiles([...event.clipboardData.files]);
  });
}
