// The words beside the map: phase, sensors, engine, figures, switches.

const GLYPHS = ["–", "●", "○", "▲", "✕"];
const PHASES = { starting: "starting", running: "running", publishing: "writing maps", finished: "finished", failed: "failed" };

export const byId = (id) => document.getElementById(id);

// An element; text is text and never markup.
export function node(name, attributes = {}, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...content.filter((each) => each !== null));
  return element;
}

export const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : ms >= 100 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(1)} ms`);
const thousands = (number) => number.toLocaleString("en");

function swatch(colour, kind = "") {
  const spot = node("i", { class: `swatch ${kind}` });
  if (colour) spot.style.backgroundColor = colour;
  return spot;
}

export class Panel {
  constructor(state, goTo) {
    this.state = state;
    this.goTo = goTo;
    this.at = -1;
  }

  begin() {
    const { run, frames } = this.state;
    this.at = -1;
    byId("title").textContent = run ? run.title : "Live map";
    document.title = run ? `${run.title} – live map` : "Live map";
    byId("frame").replaceChildren();
    this.listed = 0;
    byId("frame-part").hidden = !(run?.live || frames.length > 1);
    byId("charts-heading").textContent = run?.replayed ? "The whole run" : "The last minutes";
    byId("report").hidden = !run?.report;
    this.legend(document.querySelector("input[name=map]:checked").value);
    byId("charts-legend").replaceChildren(...this.chartLegend());
    this.shown = {};
  }

  linked() {
    byId("link").hidden = true;
    byId("notice").hidden = true;
  }

  lost() {
    byId("link").hidden = false;
    byId("link").textContent = "connection lost, trying again";
    byId("link").className = "pill bad";
  }

  ended() {
    byId("link").hidden = true;
    const { run, now } = this.state;
    const after = now?.phase === "finished" && run ? ` See it again with: gemmnet view ${run.output}` : "";
    this.notice(now?.reason ? `The run failed: ${now.reason}` : `The run has ended, and its server with it.${after}`);
  }

  notice(text) {
    byId("notice").textContent = text;
    byId("notice").hidden = false;
  }

  show() {
    const { now, run } = this.state;
    const phase = byId("phase");
    phase.textContent = now.phase === "running" && now.waits && run?.live ? "waiting for the next frame" : PHASES[now.phase];
    phase.className = `pill ${now.phase === "failed" ? "bad" : now.phase === "finished" ? "good" : ""}`;
    if (now.phase === "failed") this.notice(`The run failed: ${now.reason}`);
    if (!run) return;
    this.progress(now);
    this.frames();
    this.redraw("sensors", now.sensors, () => byId("sensors").replaceChildren(...now.sensors.map((each) => this.sensor(each))));
    this.engine(now);
    this.redraw("facts", this.facts(now), (facts) => byId("facts").replaceChildren(...facts.map(([name, value, more]) =>
      node("div", {}, node("dt", {}, name), node("dd", {}, value, more ? node("small", {}, more) : null)))));
    this.redraw("switches", this.state.switches, () => this.list("switches", this.state.switches, (each) => this.switch(each), "No switch of the engine so far."));
    this.redraw("changes", this.state.changes, () => this.list("changes", this.state.changes, (each) => this.change(each), run.watched ? "No sensor has failed. A tile without data is no failure: rasters end somewhere." : "The sensors are trusted: nobody watches them."));
  }

  // Leave what has not changed alone, so that focus and selection stay.
  redraw(name, value, draw) {
    const text = JSON.stringify(value);
    if (this.shown[name] === text) return;
    this.shown[name] = text;
    draw(value);
  }

  progress(now) {
    const { done, planned } = now.tiles;
    byId("progress-part").hidden = false;
    byId("progress").hidden = planned === null;
    if (planned) byId("progress").value = done / planned;
    const rate = now.tiles_per_s;
    const left = rate && planned && now.phase === "running" ? `, ${duration((planned - done) / rate)} left` : "";
    const what = this.state.run.live ? `${thousands(now.frames.done)} frames, ` : "";
    byId("progress-text").textContent = `${what}${thousands(done)}${planned ? ` of ${thousands(planned)}` : ""} tiles${left}`;
  }

  frames() {
    const { frames } = this.state;
    for (; this.listed < frames.length; this.listed += 1) {
      const { number, stamp } = frames[this.listed];
      byId("frame").prepend(node("option", { value: number }, stamp || "whole raster"));
    }
  }

  sensor(told) {
    const { words } = this.state;
    const state = words.states[told.state].name;
    const counts = Object.entries(told.tiles).filter(([, count]) => count).map(([name, count]) => `${name} ${thousands(count)}`);
    const reason = [told.fault, told.detail].filter(Boolean).join(": ");
    const since = told.since === null || told.state === 1 ? "" : `since tile ${told.since}`;
    const more = [since, told.recovering ? "recovering" : "", counts.length ? `tiles: ${counts.join(", ")}` : "", told.blamed ? `blamed: ${told.blamed}` : ""];
    return node("article", { class: "sensor", "data-state": told.state },
      node("h3", {}, words.sensors[told.sensor], node("span", {}, `${GLYPHS[told.state]} ${state}`)),
      reason ? node("p", {}, reason) : null,
      node("p", { class: "faint" }, more.filter(Boolean).join("; ")));
  }

  engine(now) {
    const { words } = this.state;
    const engines = now.engines ?? (now.engine === null ? [] : [[now.engine, ""]]);
    this.redraw("engine", engines, () => byId("engine").replaceChildren(...(engines.length ? engines.map(([engine, more]) =>
      node("span", {}, swatch(words.engines[engine].colour), `${words.engines[engine].name} ${more}`)) : ["no tile yet"])));
    byId("backend").textContent = now.backend ?? "";
    this.redraw("events", now.backend_events, () => byId("backend-events").replaceChildren(...now.backend_events.map((each) =>
      node("li", {}, node("b", {}, `${each.backend} ${each.what}`), ` ${each.detail}`))));
  }

  facts(now) {
    const facts = [["switches", thousands(now.switches), "of the engine"]];
    if (now.latency) {
      facts.unshift(["latency p50", milliseconds(now.latency.p50), `p99 ${milliseconds(now.latency.p99)}`]);
      if (now.latency.last !== undefined) facts.unshift(["last tile", milliseconds(now.latency.last), "latency"]);
    }
    if (now.tiles_per_s !== null) facts.push(["speed", now.tiles_per_s.toFixed(1), "tiles a second"]);
    if (this.state.run.deadline_ms !== null) facts.push(["too late", thousands(now.misses), `over ${milliseconds(this.state.run.deadline_ms)}`]);
    facts.push(["tiles lost", thousands(now.tiles.lost), now.tiles.dropped ? `${thousands(now.tiles.dropped)} dropped` : ""]);
    return facts;
  }

  list(id, entries, draw, none) {
    byId(id).replaceChildren(...(entries.length ? entries.toReversed().map(draw) : [node("li", { class: "none" }, none)]));
  }

  switch(mark) {
    const engine = this.state.words.engines[mark.engine];
    const button = node("button", { type: "button" }, node("b", {}, `${mark.count}. tile ${thousands(mark.number)}: `), swatch(engine.colour), engine.name, node("br"), node("span", { class: "faint" }, mark.why));
    button.addEventListener("click", () => this.goTo(mark));
    return node("li", {}, button);
  }

  change(told) {
    const { words } = this.state;
    const reason = [told.fault, told.detail].filter(Boolean).join(": ");
    return node("li", {}, node("b", {}, `tile ${thousands(told.number)}: ${words.sensors[told.sensor]} ${GLYPHS[told.state]} ${words.states[told.state].name}`), reason ? ` – ${reason}` : "");
  }

  // Say a switch to those who do not see it.
  announce(told) {
    const mark = told.switches.at(-1);
    if (mark) byId("news").textContent = `Tile ${mark.number}: now mapped from ${this.state.words.engines[mark.engine].name}. ${mark.why}`;
  }

  // Go to the next or last switch.
  step(by) {
    const { switches } = this.state;
    if (!switches.length) return;
    this.at = Math.max(0, Math.min(switches.length - 1, this.at + by));
    this.goTo(switches[this.at]);
  }

  legend(layer) {
    const { run, words } = this.state;
    if (!run) return;
    const entries = {
      classes: run.classes.map((each) => [swatch(each.colour), each.share === undefined ? each.name : `${each.name} ${each.share}`]),
      provenance: words.engines.slice(1, 4).map((each) => [swatch(each.colour), each.name]),
      confidence: [["0 % ", swatch("", "ramp"), "100 % sure"]],
    }[layer] ?? [];
    byId("legend").replaceChildren(...entries.map((each) => node("li", {}, ...each)));
  }

  chartLegend() {
    const { words } = this.state;
    const colours = ["--unwatched", "--alive", "--nodata", "--degraded", "--dead"];
    const states = words.states.map((each, state) => [swatch(`var(${colours[state]})`, state === 4 ? "hatched" : ""), each.name]);
    const engines = words.engines.slice(1, 4).map((each) => [swatch(each.colour), each.name]);
    return [...states, ...engines].map((each) => node("li", {}, ...each));
  }
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
