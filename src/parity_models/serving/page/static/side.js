// One server: everything that is shown of it.

import { latencyChart, loadChart } from "./charts.js";
import { block, el, ms, percent, rate, write } from "./dom.js";
import { Events } from "./events.js";
import { Instances } from "./instances.js";
import { Requests } from "./requests.js";

const isStandIn = (source) => source === "reconstruction" || source.startsWith("backup");

export class Side {
  constructor(name, named, controls) {
    this.name = name;
    this.state = el("span", { className: "badge" }, "starting");
    this.policy = el("span", { className: "quiet" });
    this.facts = el("p", { className: "facts" });
    this.tails = new Tails();
    this.sources = el("div", { className: "sources", role: "img" });
    this.gates = el("ul", { className: "gates" });
    this.instances = new Instances(controls);
    this.requests = new Requests();
    this.events = new Events();
    this.latency = latencyChart();
    this.load = loadChart();
    this.element = el("section", { className: "side" },
      el("h2", {}, named ? `${name} ` : "", this.state, " ", this.policy),
      this.facts,
      this.gates,
      block("Instances", this.instances.element),
      el("div", { className: "blocks" },
        block("Latency", this.tails.element, this.latency.element),
        block("Where answers come from", this.sources, this.load.element),
        block("Coding groups and stand-ins", this.requests.element),
        block("Events", this.events.element)));
  }

  show(state) {
    const frame = state.frame;
    write(this.state, frame.ready ? "ready" : "not ready");
    this.state.dataset.state = frame.ready ? "up" : "ejected";
    this.element.classList.remove("away");
    write(this.policy, `policy ${frame.policy}`);
    const queued = Object.values(frame.queued).reduce((sum, count) => sum + count, 0);
    write(this.facts, `${rate(frame.asked)} queries/s · ${queued} waiting · instances ` +
      `${percent(frame.busy)} busy · ${rate(frame.failed)} failed/s`);
    this.instances.show(frame.instances, frame.further_instances);
    this.tails.show(frame);
    this.showSources(frame);
    this.showGates(frame.gates);
    this.requests.show(state.requests);
    this.events.show(state.events);
    if (state.fresh) {
      this.latency.show(state.points);
      this.load.show(state.points);
    }
  }

  away() {
    write(this.state, "no connection");
    this.state.dataset.state = "gone";
    this.element.classList.add("away");
    this.events.startAnew();
  }

  // It is shown no more.
  end() {
    this.element.remove();
    this.latency.end();
    this.load.end();
  }

  showSources(frame) {
    const total = Object.values(frame.answers).reduce((sum, count) => sum + count, 0);
    const parts = Object.entries(frame.answers).filter(([, count]) => count > 0);
    const words = parts.map(([source, count]) => `${source} ${percent(count / total)}`).join(", ");
    const text = words || "no answers in the last second";
    if (this.sources.getAttribute("aria-label") === text) return;
    this.sources.setAttribute("aria-label", text);
    this.sources.replaceChildren(...parts.map(([source, count]) => {
      const part = el("span", { className: `source ${source}` }, source);
      part.style.flexGrow = count;
      return part;
    }), el("span", { className: "words" }, text));
  }

  showGates(gates) {
    const lines = gates.filter((gate) => isStandIn(gate.source)).map((gate) => {
      const lately = gate.compared_lately > 0;
      const [agreed, compared] = lately
        ? [gate.agreed_lately, gate.compared_lately] : [gate.agreed, gate.compared];
      const share = compared ? `${percent(agreed / compared)} of ${compared} agree` : "not compared yet";
      const level = gate.level ? `; its gate promises ${percent(gate.level)}` : "; it has no gate";
      const closed = gate.open ? "" : " · GATE CLOSED";
      return [gate.open, `${gate.source}: ${share}${level}${closed}`];
    });
    if (lines.length === 0) lines.push([true, "no stand-in answers with this policy"]);
    while (this.gates.children.length < lines.length) this.gates.append(el("li"));
    [...this.gates.children].forEach((item, number) => {
      if (number >= lines.length) return item.remove();
      const [open, text] = lines[number];
      write(item, text);
      item.dataset.state = open ? "up" : "ejected";
    });
  }

}

class Tails {
  constructor() {
    this.note = el("p", { className: "quiet" });
    this.cells = new Map();
    const rows = [["answered", "with stand-ins"], ["alone", "without"]].flatMap(
      ([key, words]) => [["now", "now"], ["minutes", "5 min"]].map(([window, when]) => {
        const cells = ["p50", "p99", "p999"].map((share) => {
          const cell = el("td");
          this.cells.set(`${key}.${window}.${share}`, cell);
          return cell;
        });
        return el("tr", { className: key }, el("th", { scope: "row" }, `${when}, ${words}`), ...cells);
      }));
    this.element = el("div", {}, el("table", { className: "tails" },
      el("thead", {}, el("tr", {}, ...["ms", "p50", "p99", "p99.9"].map(
        (text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...rows)), this.note);
  }

  show(frame) {
    for (const [key, cell] of this.cells) {
      const [tail, window, share] = key.split(".");
      write(cell, ms(frame[tail][window]?.[share]));
    }
    const bounds = frame.bounds
      ? ` For ${frame.bounds} more it is only known that it would have taken longer.` : "";
    write(this.note, frame.own + frame.bounds
      ? `Without: from the model's own answers to ${frame.own} of the queries that a stand-in ` +
        `answered.${bounds}`
      : "No stand-in's answer has been followed by the model's in the last minutes.");
  }
}
