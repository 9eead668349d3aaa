// The page: listens to the server's events, keeps what it was told, and has the map, the panel and the charts show it.

import { MapView } from "./map.js";
import { Charts } from "./charts.js";
import { byId, Panel } from "./panel.js";

const TILES_KEPT = 3000;
const LISTED = 300;
const AGAIN_MS = 2000;

const state = { run: null, words: null, frames: [], tiles: {}, switches: [], changes: [], now: null };
const map = new MapView(byId("map"), state);
const panel = new Panel(state, (mark) => map.show(mark));
const charts = new Charts(byId("charts"), state);
let ended = false;

function listen() {
  const source = new EventSource("events");
  source.addEventListener("open", () => panel.linked());
  source.addEventListener("snapshot", (event) => begin(JSON.parse(event.data)));
  source.addEventListener("update", (event) => add(JSON.parse(event.data)));
  source.addEventListener("end", () => { ended = true; source.close(); panel.ended(); setTimeout(listen, AGAIN_MS); });
  source.addEventListener("error", () => {
    if (!ended) panel.lost();
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS); // else the browser tries by itself
  });
}

function begin(told) {
  ended = false;
  Object.assign(state, told);
  map.begin();
  panel.begin();
  charts.begin();
  show();
}

function add(told) {
  for (const frame of told.frames) state.frames[frame.number] = frame;
  for (const [name, values] of Object.entries(told.tiles)) state.tiles[name] = [...state.tiles[name], ...values].slice(-TILES_KEPT);
  state.switches = [...state.switches, ...told.switches].slice(-LISTED);
  state.changes = [...state.changes, ...told.changes].slice(-LISTED);
  state.now = told.now;
  if (state.run === null) return panel.show(); // a snapshot comes once the run has begun
  for (const frame of told.frames) map.frameChanged(frame);
  map.add(told);
  panel.announce(told);
  show();
}

function show() {
  panel.show();
  charts.show();
}

byId("layers").addEventListener("submit", (event) => event.preventDefault());
byId("layers").addEventListener("input", (event) => {
  if (event.target.name === "map") { map.choose(event.target.value); panel.legend(event.target.value); }
  else if (event.target.name === "input") map.chooseInput(event.target.value);
  else if (event.target.id === "opacity") map.opacity(event.target.value / 100);
  else if (event.target.id === "follow") map.follow(event.target.checked);
  else if (event.target.id === "frame") map.chooseFrame(Number(event.target.value));
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const layer = { 1: "classes", 2: "provenance", 3: "confidence", 0: "" }[event.key];
  if (layer !== undefined) press(`input[name=map][value="${layer}"]`);
  else if (event.key === "i") nextInput();
  else if (event.key === "f") press("#follow");
  else if (event.key === "w") map.whole();
  else if (event.key === "n" || event.key === "b") panel.step(event.key === "n" ? 1 : -1);
  else return;
  event.preventDefault();
});

function press(selector) {
  document.querySelector(selector).click();
}

function nextInput() {
  const inputs = [...document.querySelectorAll("input[name=input]:enabled")];
  inputs[(inputs.findIndex((each) => each.checked) + 1) % inputs.length].click();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.begin());
listen();
