// Instances as a grid, by node: what each one is, and what it runs.

import { el, ms, write } from "./dom.js";

const ROLES = { deployed: "model", "golden query": "check" };

export class Instances {
  constructor() {
    this.element = el("div", { className: "nodes" });
    this.nodes = new Map();
    this.cells = new Map();
  }

  show(instances, further) {
    const there = new Set();
    for (const instance of instances) {
      there.add(instance.place);
      let cell = this.cells.get(instance.place);
      if (!cell) {
        cell = new Cell();
        this.cells.set(instance.place, cell);
        insert(this.node(instance.node), cell.element, instance.name);
      }
      cell.show(instance);
    }
    for (const [place, cell] of this.cells) {
      if (there.has(place)) continue;
      cell.element.remove();
      this.cells.delete(place);
    }
    this.element.dataset.more = further ? `and ${further} more` : "";
  }

  node(name) {
    let grid = this.nodes.get(name);
    if (!grid) {
      grid = el("div", { className: "grid", role: "list" });
      this.nodes.set(name, grid);
      if (name) this.element.append(el("h4", {}, `node ${name}`));
      this.element.append(grid);
    }
    return grid;
  }
}

// Puts a cell where its instance's name belongs, 2 before 10.
function insert(grid, element, name) {
  element.dataset.name = name;
  const after = [...grid.children].find((other) =>
    other.dataset.name.localeCompare(name, "en", { numeric: true }) > 0);
  grid.insertBefore(element, after ?? null);
}

class Cell {
  constructor() {
    this.name = el("strong");
    this.state = el("span", { className: "state" });
    this.doing = el("span", { className: "doing" });
    this.element = el("div", { className: "cell", role: "listitem" }, this.name, this.state, this.doing);
  }

  show(instance) {
    const word = instance.state === "up" && instance.slow ? "slow" : instance.state;
    const usual = instance.usual_ms ? ` · ${ms(instance.usual_ms)} ms` : "";
    const role = instance.running && (ROLES[instance.running] ?? instance.running);
    write(this.name, instance.name);
    write(this.state, word);
    write(this.doing, instance.state === "gone" ? instance.why : `${role || "idle"}${usual}`);
    this.element.dataset.state = word;
    this.element.dataset.running = role.startsWith("parity") ? "parity" : role;
    this.element.title = instance.why || `runs ${instance.roles.join(", ")}`;
  }
}
