// Search in conversations: titles and messages, without the versions that are not shown.

const BEFORE_MATCH = 24; // characters of a snippet
const SNIPPET = 90;

/**
 * Return the conversations with all words of a query, as {conversation, message, snippet}: the first
 * message with the first word, and the text around it as [before, match, after]. These two are absent
 * if only the title has it.
 */
export function search(conversations, query) {
  const words = query.trim().split(/\s+/).map(pattern);
  const found = conversations.filter(({ title = "", messages }) => {
    const texts = [title, ...messages.map(({ content }) => content)];
    return words.every((word) => texts.some((text) => word.test(text)));
  });
  return found.map((conversation) => {
    const message = conversation.messages.findIndex(({ content }) => words[0].test(content));
    if (message < 0) return { conversation };
    const { content } = conversation.messages[message];
    return { conversation, message, snippet: snippetOf(content, words[0].exec(content)) };
  });
}

function pattern(word) {
  return new RegExp(word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "iu");
}

function snippetOf(text, { index, 0: match }) {
  const from = Math.max(0, index - BEFORE_MATCH);
  const end = index + match.length;
  const before = `${from ? "…" : ""}${text.slice(from, index)}`;
  return [before, match, text.slice(end, end + SNIPPET)];
}
