// The models of a repository: one is chosen, and its current version shown as a server is.

import { ask } from "./access.js";
import { block, el, write } from "./dom.js";
import { follow } from "./feed.js";
import { Side } from "./side.js";

const REFRESH = 2000; // milliseconds

export function showModels(main) {
  const models = new Models(main);
  main.before(models.element);
  models.refresh();
}

class Models {
  constructor(main) {
    this.main = main;
    this.wanted = new URLSearchParams(location.search).get("model");
    this.shown = ""; // the model and the version that are followed
    this.choice = el("select", { id: "model" });
    this.choice.addEventListener("change", () => this.choose(this.choice.value));
    this.rows = el("tbody");
    const head = ["version", "state", ""].map((text) => el("th", { scope: "col" }, text));
    this.element = el("section", { id: "models", className: "side", "aria-label": "Models" },
      el("h2", {}, el("label", { htmlFor: "model" }, "Model"), " ", this.choice),
      block("Versions", el("table", { className: "versions" },
        el("thead", {}, el("tr", {}, ...head)), this.rows)));
  }

  async refresh() {
    const answer = await ask("../v2/repository/index", { method: "POST" }).catch(() => null);
    this.element.classList.toggle("away", !answer?.ok);
    if (answer?.ok) this.show(await answer.json());
    setTimeout(() => this.refresh(), REFRESH);
  }

  show(index) {
    this.index = index;
    const names = [...new Set(index.map((each) => each.name))];
    if (names.join("\n") !== [...this.choice.options].map((each) => each.value).join("\n")) {
      this.choice.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
      if (names.includes(this.wanted)) this.choice.value = this.wanted;
    }
    const versions = index.filter((each) => each.name === this.choice.value);
    while (this.rows.children.length < versions.length) {
      this.rows.append(el("tr", {}, el("th", { scope: "row" }), el("td"), el("td")));
    }
    [...this.rows.children].forEach((row, number) => {
      if (number >= versions.length) return row.remove();
      const { version, state, reason } = versions[number];
      row.dataset.state = state.toLowerCase();
      [version, state.toLowerCase(), reason ?? ""].forEach((text, column) =>
        write(row.children[column], text));
    });
    this.followCurrent(versions.find((each) => each.state === "READY"));
  }

  // Shows another model, and keeps that in the address.
  choose(name) {
    history.replaceState(null, "", `?model=${encodeURIComponent(name)}${location.hash}`);
    this.wanted = name;
    this.show(this.index);
  }

  followCurrent(current) {
    const address = current ? `${new URLSearchParams({ model: current.name, version: current.version })}` : "";
    if (address === this.shown) return;
    this.shown = address;
    this.ending?.abort();
    this.side?.end();
    this.side = this.ending = null;
    if (!current) return;
    const side = this.side = new Side(`version ${current.version}`, true, null);
    this.ending = new AbortController();
    this.main.dataset.sides = 1;
    this.main.append(side.element);
    follow(`events?${address}`, (state) => side.show(state), () => side.away(), this.ending.signal);
  }
}
