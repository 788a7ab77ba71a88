// The streaming client: one request, its server-sent events, and their errors.

/** An error with a message for the user, and the API's code of it. */
export class ServerError extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/** Return the response to a GET of the server's API. */
export async function get(path) {
  const response = await request(path, {});
  return parsed(await response.text());
}

/**
 * POST a body and yield each event of the answer as an object, up to `data: [DONE]`.
 *
 * Aborting `signal` ends the request: the iteration then throws an AbortError.
 */
export async function* stream(path, body, signal) {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    const event = parsed(data);
    if (event.error) {
      const { message = "The server reports an error.", code } = event.error;
      throw new ServerError(message, code);
    }
    yield event;
  }
  throw new ServerError("The connection was closed before the answer was complete.");
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ServerError("The server sent an invalid response.");
  }
}

/** Return a response's error; its message says when to try again. */
async function failure(response) {
  let message, code;
  try {
    ({ message, code } = (await response.json()).error);
  } catch {
    message = `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  }
  const wait = Number(response.headers.get("Retry-After"));
  return new ServerError(wait > 0 ? `${message} (Try again in ${wait} s.)` : message, code);
}

/** Yield the data of each server-sent event of a body; comments are skipped. */
async function* eventData(body) {
  let data = [];
  for await (const line of lines(body)) {
    if (line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    } else if (line === "" && data.length) {
      yield data.join("\n");
      data = [];
    }
  }
  if (data.length) yield data.join("\n");
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) yield part.replace(/\r$/, "");
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {}); // the reader stopped early, or the connection is closed
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection was lost before the answer was complete.");
  }
}
