// Instances as a grid, by node: what each one is, and what it runs.

import { el, ms, write } from "./dom.js";

const ROLES = { deployed: "model", "golden query": "check" };

export class Instances {
  element = el("div", { className: "nodes" });
  grids = new Map();
  cells = new Map();

  show(instances) {
    const there = new Set(instances.map((instance) => instance.name));
    for (const [name, cell] of this.cells) {
      if (!there.has(name)) {
        cell.remove();
        this.cells.delete(name);
      }
    }
    for (const instance of instances) {
      fill(this.cells.get(instance.name) ?? this.add(instance), instance);
    }
  }

  // A cell where its instance's name belongs, 2 before 10.
  add({ name, node }) {
    if (!this.grids.has(node)) {
      this.grids.set(node, el("div", { className: "grid", role: "list" }));
      this.element.append(...(node ? [el("h4", {}, `node ${node}`)] : []), this.grids.get(node));
    }
    const cell = el("div", { className: "cell", role: "listitem" }, el("strong", {}, name),
      el("span", { className: "state" }), el("span", { className: "doing" }));
    const grid = this.grids.get(node);
    const after = [...grid.children].find((other) =>
      other.firstChild.textContent.localeCompare(name, "en", { numeric: true }) > 0);
    grid.insertBefore(cell, after ?? null);
    this.cells.set(name, cell);
    return cell;
  }
}

function fill(cell, instance) {
  const word = instance.state === "up" && instance.slow ? "slow" : instance.state;
  const usual = instance.usual_ms ? ` · ${ms(instance.usual_ms)} ms` : "";
  const role = instance.running && (ROLES[instance.running] ?? instance.running);
  write(cell.children[1], word);
  write(cell.children[2], `${role || "idle"}${usual}`);
  cell.dataset.state = word;
  cell.dataset.running = role.startsWith("parity") ? "parity" : role;
  cell.title = `runs ${instance.roles.join(", ")}`;
}
