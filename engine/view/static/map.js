// The map: squares of pictures in the raster's own pixels (rows down, columns right), marks where the engine was switched.

import { byId, node } from "./panel.js";

/* global L */
const SQUARE_PX = 512;
const REFRESH_MS = 1000; // a square that changed is asked for again

const AT_ONCE = 4;
const AGAIN_MS = 2000;
const MOST_NUMBERED = 40;
const SHAPES = { 2: "only-rgir", 3: "only-ndsm" };

const PIXELS = L.extend({}, L.CRS.Simple, { transformation: new L.Transformation(1, 0, 1, 0) });

// A layer whose pictures are replaced, without a flicker, where the map has grown.
const Squares = L.GridLayer.extend({
  options: { tileSize: SQUARE_PX, minZoom: -24, maxZoom: 24, maxNativeZoom: 0, updateWhenZooming: false, keepBuffer: 1 },

  initialize(url, version, options) {
    L.GridLayer.prototype.initialize.call(this, options);
    this.url = url;
    this.version = version;
    this.squares = new Map();
    this.stale = new Set();
    this.loading = 0;
    this.on("tileunload", (event) => this.squares.delete(this.key(event.coords)));
    this.on("remove", () => clearInterval(this.timer));
    this.on("add", () => { this.timer = setInterval(() => this.refresh(), REFRESH_MS); });
  },

  key(coords) { return `${coords.z}/${coords.x}/${coords.y}`; },

  createTile(coords, done) {
    const square = { element: node("div", { class: "square" }), coords, version: -1 };
    this.squares.set(this.key(coords), square);
    this.load(square, done);
    return square.element;
  },

  load(square, done = () => {}) {
    const { coords } = square;
    const picture = node("img", { alt: "" });
    const version = this.version(coords);
    this.loading += 1;
    const over = (error) => { this.loading -= 1; done(error, square.element); };
    picture.addEventListener("load", () => {
      square.version = version;
      square.element.replaceChildren(picture);
      over(null);
    });
    picture.addEventListener("error", () => {
      over(new Error("no picture"));
      this.fire("squareerror");
      setTimeout(() => { if (this.squares.get(this.key(coords)) === square) this.stale.add(this.key(coords)); }, AGAIN_MS);
    });
    picture.src = `${this.url}/${-coords.z}/${coords.x}/${coords.y}?v=${version}`;
  },

  refresh() {
    for (const key of this.stale) {
      if (this.loading >= AT_ONCE) return;
      this.stale.delete(key);
      const square = this.squares.get(key);
      if (square) this.load(square);
    }
  },

  // Rows and columns that changed.
  touch(row, col, height, width) {
    for (const [key, { coords }] of this.squares) {
      const side = SQUARE_PX * 2 ** -coords.z;
      const [top, left] = [coords.y * side, coords.x * side];
      if (row < top + side && row + height > top && col < left + side && col + width > left) this.stale.add(key);
    }
  },

  touchAll() { for (const key of this.squares.keys()) this.stale.add(key); },
});

export class MapView {
  constructor(element, state) {
    this.state = state;
    this.frame = null;
    this.layer = "classes";
    this.input = "rgir";
    this.overlayOpacity = 0.8;
    this.following = false;
    this.newest = true;
    this.marks = L.layerGroup();
    this.here = L.rectangle([[0, 0], [0, 0]], { color: "#000", weight: 2, dashArray: "6 4", fill: false, interactive: false });
    this.map = L.map(element, {
      crs: PIXELS, minZoom: -12, maxZoom: 5, attributionControl: false, fadeAnimation: false, zoomControl: false,
    });
    L.control.zoom({ zoomInTitle: "Zoom in", zoomOutTitle: "Zoom out" }).addTo(this.map);
    this.map.setView([0, 0], 0);
    this.marks.addTo(this.map);
    this.moved = false;
    for (const kind of ["pointerdown", "wheel", "keydown"]) element.addEventListener(kind, () => { this.moved = true; });
    this.map.on("mousemove", (event) => this.point(event.latlng));
    this.map.on("moveend", () => { if (document.activeElement === element) this.point(this.map.getCenter()); });
    new ResizeObserver(() => (this.moved ? this.map.invalidateSize() : this.whole())).observe(element);
  }

  begin() {
    this.news = new Map();
    this.frame = null;
    this.marks.clearLayers();
    if (this.state.run && this.state.frames.length) this.chooseFrame(this.state.frames.length - 1);
    else this.clear();
    this.newest = true;
  }

  clear() {
    for (const each of [this.backdrop, this.overlay, this.here]) each?.remove();
    this.backdrop = this.overlay = null;
  }

  chooseFrame(number) {
    const frame = this.state.frames[number];
    const before = this.frame;
    this.frame = frame;
    this.newest = number === this.state.frames.length - 1;
    this.bounds = L.latLngBounds([[0, 0], [frame.height, frame.width]]);
    this.clear();
    this.map.setMaxBounds(this.bounds.pad(0.5));
    if (!before || before.height !== frame.height || before.width !== frame.width) this.whole();
    for (const input of document.querySelectorAll("input[name=input]")) {
      input.disabled = input.value !== "" && !this.inputs().includes(input.value);
    }
    byId("base-part").hidden = !this.state.run.base;
    byId("base-source").textContent = this.state.run.base ? `Base layer: ${this.state.run.base}.` : "";
    const chosen = document.querySelector("input[name=input]:checked");
    if (chosen.disabled) document.querySelector("input[name=input]:enabled").click();
    this.chooseInput(this.input);
    this.choose(this.layer);
    this.marks.clearLayers();
    for (const mark of this.state.switches) this.mark(mark);
    if (byId("frame").value !== String(number)) byId("frame").value = String(number);
  }

  // The frame's maps are files now, or there is another one.
  frameChanged(frame) {
    if (this.frame === null || (this.newest && frame.number > this.frame.number)) this.chooseFrame(frame.number);
    else if (this.frame.number === frame.number) {
      this.frame = frame;
      for (const cell of this.cells(0, 0, frame.height, frame.width)) this.news.set(cell, this.state.sequence);
      this.overlay?.touchAll();
    }
  }

  whole() {
    this.moved = false;
    if (!this.frame) return;
    this.map.invalidateSize();
    this.map.setMinZoom(-12);
    this.map.fitBounds(this.bounds, { animate: false });
    this.map.setMinZoom(Math.min(0, this.map.getZoom()) - 1);
  }

  choose(layer) {
    this.layer = layer;
    this.overlay?.remove();
    this.overlay = null;
    if (!this.frame || !layer) return;
    const url = `tiles/${this.frame.number}/${layer}`;
    this.overlay = new Squares(url, (coords) => this.versionOf(coords), { bounds: this.bounds, opacity: this.overlayOpacity, zIndex: 2 });
    this.overlay.addTo(this.map);
  }

  chooseInput(input) {
    this.input = input;
    this.backdrop?.remove();
    this.backdrop = null;
    if (!this.frame || !this.inputs().includes(input)) return;
    this.backdrop = new Squares(`tiles/${this.frame.number}/${input}`, () => 0, { bounds: this.bounds, zIndex: 1 });
    this.backdrop.addTo(this.map);
  }

  // What can lie under the map.
  inputs() {
    const placed = this.frame.crs && this.frame.transform && this.state.run.base;
    return placed ? [...this.frame.inputs, "base"] : this.frame.inputs;
  }

  opacity(share) {
    this.overlayOpacity = share;
    this.overlay?.setOpacity(share);
  }

  follow(following) {
    this.following = following;
    if (following) { this.newest = true; if (this.frame && this.frame.number < this.state.frames.length - 1) this.chooseFrame(this.state.frames.length - 1); }
  }

  // What is new: pixels, switches, the tile under way.
  add(told) {
    this.state.sequence = told.sequence;
    for (const [number, row, col, height, width] of told.painted) {
      if (number !== this.frame?.number) continue;
      for (const cell of this.cells(row, col, height, width)) this.news.set(cell, told.sequence);
      this.overlay?.touch(row, col, height, width);
    }
    for (const mark of told.switches) this.mark(mark);
    const here = told.painted.filter(([number]) => number === this.frame?.number);
    if (told.now.phase !== "running") this.here.remove();
    if (!here.length || !this.frame) return;
    this.here.setBounds(here.map(([, row, col, height, width]) => [[row, col], [row + height, col + width]]).flat());
    if (told.now.phase === "running") this.here.addTo(this.map);
    if (this.following) this.map.panInside(this.here.getBounds().getCenter(), { padding: [80, 80] });
  }

  * cells(row, col, height, width) {
    for (let r = Math.floor(row / SQUARE_PX); r * SQUARE_PX < row + height; r += 1)
      for (let c = Math.floor(col / SQUARE_PX); c * SQUARE_PX < col + width; c += 1) yield `${this.frame.number}:${r},${c}`;
  }

  versionOf(coords) {
    const side = SQUARE_PX * 2 ** -coords.z;
    let newest = this.frame.published ? 1 : 0;
    for (const cell of this.cells(coords.y * side, coords.x * side, side, side)) newest = Math.max(newest, this.news.get(cell) ?? 0);
    return newest;
  }

  mark(mark) {
    if (mark.frame !== this.frame?.number) return;
    const engine = this.state.words.engines[mark.engine];
    const numbered = this.state.now.switches <= MOST_NUMBERED;
    const text = `Switch ${mark.count}, tile ${mark.number}: now mapped from ${engine.name}`;
    const icon = node("span", { class: `mark ${SHAPES[mark.engine] ?? ""}` }, numbered ? String(mark.count) : "");
    const side = numbered ? 22 : 12;
    Object.assign(icon.style, { background: engine.colour, width: `${side}px`, height: `${side}px` });
    const marker = L.marker([mark.row + mark.height / 2, mark.col + mark.width / 2], {
      icon: L.divIcon({ html: icon, className: "", iconSize: [side, side] }), title: text, alt: text,
    });
    marker.bindPopup(node("div", {}, node("b", {}, text), node("p", {}, mark.why)));
    marker.count = mark.count;
    marker.addTo(this.marks);
  }

  // Go to a switch.
  show(mark) {
    if (mark.frame !== this.frame?.number && this.state.frames[mark.frame]) this.chooseFrame(mark.frame);
    this.moved = true;
    this.map.setView([mark.row + mark.height / 2, mark.col + mark.width / 2], Math.max(this.map.getZoom(), -1));
    this.marks.eachLayer((marker) => { if (marker.count === mark.count) marker.openPopup(); });
  }

  // What the maps say in a place.
  point(place) {
    this.place = place;
    if (this.asking || !this.frame) return;
    this.asking = true;
    setTimeout(async () => {
      const [row, col] = [Math.floor(this.place.lat), Math.floor(this.place.lng)];
      try { byId("place").textContent = await this.describe(row, col); } finally { this.asking = false; }
    }, 120);
  }

  async describe(row, col) {
    const { frame } = this;
    if (row < 0 || col < 0 || row >= frame.height || col >= frame.width) return "";
    const answer = await fetch(`pixel/${frame.number}/${row}/${col}`).catch(() => null);
    if (!answer?.ok) return "";
    const told = await answer.json();
    const where = frame.transform ? `, ${this.coordinates(row, col)}` : "";
    const what = told.class === null ? "not mapped" : `${told.class}, ${told.confidence} % sure, from ${told.mapped_from}`;
    return `Row ${row}, column ${col}${where}: ${what}`;
  }

  coordinates(row, col) {
    const [a, b, c, d, e, f] = this.frame.transform;
    const digits = Math.abs(a) < 0.01 ? 6 : 1;
    const [x, y] = [a * (col + 0.5) + b * (row + 0.5) + c, d * (col + 0.5) + e * (row + 0.5) + f];
    return `${x.toFixed(digits)}, ${y.toFixed(digits)}`;
  }
}
