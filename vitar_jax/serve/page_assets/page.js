// The form: asks the question, shows the reply as it comes, and stops it.
"use strict";

let model = null; // the server's description of its model
let playing = null; // AbortController of the request in progress

const tell = (text) => (byId("status").textContent = text);
const lines = (id) => byId(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

function complain(text) {
  byId("problem").textContent = text;
  if (text) byId("problem").scrollIntoView({ block: "nearest" });
}

async function loadModel() {
  const { data } = await (await send("v1/models")).json();
  [model] = data;
  byId("model").textContent = `Model: ${model.id}.`;
  document.title = `${model.id} – vitar_jax`;
  byId("protocol").replaceChildren(...model.protocols.map((name) => make("option", {}, name)));
  if (model.protocols.includes(model.protocol)) byId("protocol").value = model.protocol;
  if (model.options_only) {
    byId("options-note").textContent = "This model was trained on questions with options only.";
    byId("settings").open = true;
  }
}

async function requestBody(images) {
  const parts = await Promise.all(images.map(async ({ file }) => ({ type: "image_url", image_url: { url: await inline(file) } })));
  const content = [...parts, { type: "text", text: byId("question").value.trim() }];
  const settings = { protocol: byId("protocol").value, temperature: byId("temperature").valueAsNumber || 0, options: lines("options") };
  const seed = byId("seed").valueAsNumber;
  if (!Number.isNaN(seed)) settings.seed = seed;
  return JSON.stringify({ model: model.id, messages: [{ role: "user", content }], stream: true, store: true, ...settings });
}

async function ask() {
  if (playing) return;
  if (!byId("ask").reportValidity()) return;
  complain("");
  const control = new AbortController();
  playing = control;
  setPlaying(true);
  let play = null;
  try {
    if (!model) await loadModel();
    const images = [...chosen];
    const body = await requestBody(images);
    const response = await send("v1/chat/completions", "application/json", body, control.signal);
    play = new Play(byId("question").value.trim(), lines("options"), images);
    for await (const chunk of eventsOf(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const { event } = chunk;
      if (event?.type === "end") play.end(event, `episodes/${chunk.id}`);
      else if (event) await play.take(event);
    }
  } catch (error) {
    if (control.signal.aborted) tell("Stopped.");
    else complain(error.message);
  }
  play?.stop();
  playing = null;
  setPlaying(false);
}

function setPlaying(on) {
  const focused = document.activeElement;
  byId("stop").hidden = !on;
  byId("submit").disabled = on;
  if (on && focused === byId("submit")) byId("stop").focus();
  if (!on && focused === byId("stop")) byId("submit").focus();
}

function setUp() {
  setUpImages();
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  byId("stop").addEventListener("click", () => playing?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") playing?.abort();
  });
  byId("key").addEventListener("change", () => loadModel().then(() => complain("")).catch(({ message }) => complain(message)));
  loadModel().catch(({ message }) => complain(message));
}

setUp();
