// The last minutes: latency as a line, above it lanes with the sensors' states and what was mapped from.

import { byId, milliseconds } from "./panel.js";

/* global uPlot */
const STATE_COLOURS = ["--unwatched", "--alive", "--nodata", "--degraded", "--dead"];
const DEAD = 4;
const LANE_PX = 20;
const GAP_PX = 5;
const HEIGHT_PX = 115;
const TITLE_PX = 78;

export class Charts {
  constructor(element, state) {
    this.element = element;
    this.state = state;
    this.plot = null;
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(element);
  }

  size() {
    return { width: Math.max(260, this.element.clientWidth), height: HEIGHT_PX + this.lanes().length * (LANE_PX + GAP_PX) };
  }

  lanes() {
    const { run, words } = this.state;
    if (!run) return [];
    return [...run.sensors.map((sensor) => ({ name: words.sensors[sensor], key: sensor })), { name: "mapped from", key: "engine" }];
  }

  colour(name) {
    const variable = /^var\((.*)\)$/.exec(name)?.[1] ?? (name.startsWith("--") ? name : null);
    return variable ? getComputedStyle(document.documentElement).getPropertyValue(variable).trim() : name;
  }

  begin() {
    this.plot?.destroy();
    this.plot = null;
    this.element.replaceChildren();
    const { run, words } = this.state;
    if (!run) return;
    const [ink, line, trace] = ["--faint", "--line", "--trace"].map((name) => this.colour(name));
    const lanes = this.lanes();
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line }, font: "12px sans-serif" };
    const named = (key) => (_plot, value) => (value === null || value === undefined ? "" : (key === "engine" ? words.engines : words.states)[value].name);
    this.plot = new uPlot({
      ...this.size(),
      padding: [lanes.length * (LANE_PX + GAP_PX) + GAP_PX, 8, 0, 0],
      cursor: { drag: { x: false, y: false }, y: false },
      scales: { x: { time: false }, y: { range: (_plot, _low, high) => [0, Math.max(1, high ?? 1) * 1.1] }, state: { range: [0, 1] } },
      axes: [
        { ...axis, size: 30, values: (_plot, values) => values.map((value) => this.when(value)) },
        { ...axis, size: TITLE_PX, values: (_plot, values) => values.map((value) => (value >= 1000 ? `${value / 1000} s` : `${value} ms`)) },
      ],
      series: [
        { label: run.replayed ? "tile" : "time", value: (_plot, value) => (value === null || value === undefined ? "" : this.when(value)) },
        { label: "latency", scale: "y", stroke: trace, fill: `${trace}33`, width: 1.3, points: { show: false }, value: (_plot, value) => (value === null || value === undefined ? "" : milliseconds(value)) },
        ...lanes.map(({ name, key }) => ({ label: name, scale: "state", paths: () => null, points: { show: false }, value: named(key) })),
      ],
      hooks: { draw: [(plot) => this.draw(plot)] },
    }, this.data(), this.element);
  }

  data() {
    const { tiles, run } = this.state;
    return [run.replayed ? tiles.number : tiles.at_s, tiles.latency_ms, ...this.lanes().map(({ key }) => tiles[key])];
  }

  when(value) {
    if (this.state.run.replayed) return Number.isInteger(value) ? String(value) : "";
    const seconds = Math.round(value);
    return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }

  show() {
    const { now, run } = this.state;
    if (!run) return;
    if (!this.plot) this.begin();
    this.plot.setData(this.data());
    if (this.plot.cursor.left < 0) this.plot.setLegend({ idx: this.state.tiles.number.length - 1 });
    byId("charts-text").textContent = now.latency
      ? `Latency: median ${milliseconds(now.latency.p50)}, 99th percentile ${milliseconds(now.latency.p99)}${run.deadline_ms === null ? "" : `, deadline ${milliseconds(run.deadline_ms)}`}. Taller and hatched lanes are worse.`
      : "No tile yet.";
  }

  // Lanes above the plot, and the deadline in it.
  draw(plot) {
    const { ctx, bbox } = plot;
    const scale = devicePixelRatio;
    const [xs, , ...lanes] = plot.data;
    ctx.save();
    ctx.font = `${12 * scale}px sans-serif`;
    ctx.textBaseline = "middle";
    this.lanes().forEach(({ name, key }, number) => {
      const top = bbox.top - (this.lanes().length - number) * (LANE_PX + GAP_PX) * scale;
      ctx.fillStyle = this.colour("--ink");
      ctx.textAlign = "right";
      ctx.fillText(name, bbox.left - 6 * scale, top + (LANE_PX * scale) / 2);
      this.lane(plot, xs, lanes[number], key, top, LANE_PX * scale);
    });
    const { deadline_ms: limit } = this.state.run;
    if (limit !== null && limit <= plot.scales.y.max) {
      const y = plot.valToPos(limit, "y", true);
      ctx.strokeStyle = this.colour("--bad");
      ctx.setLineDash([6 * scale, 4 * scale]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.restore();
  }

  lane(plot, xs, values, key, top, height) {
    const { ctx, bbox } = plot;
    const { words } = this.state;
    const place = (x) => Math.min(bbox.left + bbox.width, Math.max(bbox.left, plot.valToPos(x, "x", true)));
    for (let first = 0; first < xs.length;) {
      let next = first + 1;
      while (next < xs.length && values[next] === values[first]) next += 1;
      const value = values[first];
      const [left, right] = [place(xs[first]), place(xs[Math.min(next, xs.length - 1)])];
      const share = key === "engine" ? 1 : words.states[value].height;
      ctx.fillStyle = this.colour(key === "engine" ? words.engines[value].colour : STATE_COLOURS[value]);
      ctx.fillRect(left, top + height * (1 - share), Math.max(1, right - left), height * share);
      if (key !== "engine" && value === DEAD) this.hatch(ctx, left, top, Math.max(1, right - left), height);
      first = next;
    }
  }

  hatch(ctx, left, top, width, height) {
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    ctx.strokeStyle = "#000a";
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.beginPath();
    for (let x = left - height; x < left + width; x += 6 * devicePixelRatio) {
      ctx.moveTo(x, top + height);
      ctx.lineTo(x + height, top);
    }
    ctx.stroke();
    ctx.restore();
  }
}
