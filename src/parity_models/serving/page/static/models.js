// The models of a repository: one of them is chosen, and shown are its versions, what became of them,
// and each that runs as a server of its own.

import { block, el, percent, write } from "./dom.js";
import { Events } from "./events.js";
import { follow, frames } from "./feed.js";
import { Side } from "./side.js";

const EVENTS = 200;
const HEADINGS = ["version", "state", "of requests", ""];
const SHARED = ["model", "instances", "at least", "busy"];

export function showModels(url, main) {
  const models = new Models(main);
  main.before(models.element);
  frames(url, (frame, first) => models.show(frame, first), () => models.away());
}

class Models {
  constructor(main) {
    this.main = main;
    this.wanted = new URLSearchParams(location.search).get("model");
    this.models = [];
    this.past = [];
    this.sides = new Map(); // by version, of the model that is shown
    this.choice = el("select", { id: "model" });
    this.choice.addEventListener("change", () => this.choose(this.choice.value));
    this.rows = el("tbody");
    this.sharing = el("tbody");
    this.shared = block("Shared instances", table("sharing", SHARED, this.sharing));
    this.events = new Events();
    this.element = el("section", { id: "models", className: "side", "aria-label": "Models" },
      el("h2", {}, el("label", { htmlFor: "model" }, "Model"), " ", this.choice),
      this.shared,
      block("Versions", table("versions", HEADINGS, this.rows)),
      block("Releases", this.events.element));
  }

  show(frame, first) {
    this.element.classList.remove("away");
    this.models = frame.models;
    if (first) {
      this.past = [];
      this.events.startAnew();
    }
    this.past = [...this.past, ...frame.events].slice(-EVENTS);
    this.showNames();
    const model = this.models.find((each) => each.name === this.choice.value);
    this.showShared(model);
    this.showVersions(model?.versions ?? []);
    this.showSides(model);
    this.events.show(this.past.filter((event) => event.model === model?.name));
  }

  away() {
    this.element.classList.add("away");
  }

  // Shows another model, and keeps that in the address.
  choose(name) {
    history.replaceState(null, "", `?model=${encodeURIComponent(name)}${location.hash}`);
    this.wanted = name;
    this.leave([...this.sides.keys()]);
    this.events.startAnew();
    this.show({ models: this.models, events: [] }, false);
  }

  showNames() {
    const names = this.models.map((model) => model.name);
    if (names.join("\n") === [...this.choice.options].map((each) => each.value).join("\n")) return;
    this.choice.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    if (names.includes(this.wanted)) this.choice.value = this.wanted;
  }

  // All models, as they have the instances together; nothing where they share none.
  showShared(chosen) {
    const models = this.models.filter((model) => model.shared);
    this.shared.hidden = models.length === 0;
    fill(this.sharing, models, (row, { name, shared }) => {
      row.ariaCurrent = name === chosen?.name ? "true" : null;
      return [name, `${shared.has}`, `${shared.least}`, shared.load.toFixed(1)];
    });
  }

  showVersions(versions) {
    fill(this.rows, versions, (row, version) => {
      const state = version.role || version.state.toLowerCase();
      row.dataset.state = state;
      return [version.version, state, version.share ? percent(version.share) : "–", version.reason];
    });
  }

  // Those that can be watched: the current one first, then by their age.
  showSides(model) {
    const watched = (model?.versions ?? []).filter((each) => each.watched)
      .sort((one, other) => (other.role === "current") - (one.role === "current"));
    const versions = watched.map((each) => each.version);
    this.leave([...this.sides.keys()].filter((version) => !versions.includes(version)));
    versions.forEach((version, place) => {
      if (!this.sides.has(version)) this.enter(model.name, version);
      const { element } = this.sides.get(version).side;
      if (this.main.children[place] !== element) {
        this.main.insertBefore(element, this.main.children[place] ?? null);
      }
    });
    if (+this.main.dataset.sides !== versions.length) this.main.dataset.sides = versions.length;
  }

  enter(name, version) {
    const side = new Side(`version ${version}`, true, null);
    const ending = new AbortController();
    this.sides.set(version, { side, ending });
    const of = new URLSearchParams({ model: name, version });
    follow(`events?${of}`, (state) => side.show(state), () => side.away(), ending.signal);
  }

  leave(versions) {
    for (const version of versions) {
      const { side, ending } = this.sides.get(version);
      ending.abort();
      side.end();
      this.sides.delete(version);
    }
  }
}

function table(className, headings, body) {
  const columns = headings.map((text) => el("th", { scope: "col" }, text));
  return el("table", { className }, el("thead", {}, el("tr", {}, ...columns)), body);
}

// Lets the body of a table have a row of four texts for each of the items.
function fill(body, items, texts) {
  while (body.children.length < items.length) {
    body.append(el("tr", {}, el("th", { scope: "row" }), el("td"), el("td"), el("td")));
  }
  [...body.children].forEach((row, number) => {
    if (number >= items.length) return row.remove();
    texts(row, items[number]).forEach((text, column) => write(row.children[column], text));
  });
}
