// Requests to the server, and its replies as events.
"use strict";

/** Sends a request with the API key, if there is one. Throws the server's sentence if it refuses. */
async function send(path, type, body, signal) {
  const headers = {};
  if (type) headers["Content-Type"] = type;
  if (byId("key").value) headers.Authorization = `Bearer ${byId("key").value}`;
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer.");
  });
  if (response.ok) return response;
  if (response.status === 401) askForKey();
  const said = await response.json().catch(() => null);
  throw new Error(said?.error?.message ?? `The server answered with status ${response.status}.`);
}

function askForKey() {
  byId("key-field").hidden = false;
  byId("key").focus();
}

/** Yields the JSON of each server-sent event. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The server ended the reply early.");
    const events = (unread + value).split("\n\n");
    unread = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
