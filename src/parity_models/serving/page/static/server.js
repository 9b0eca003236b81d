// One server: everything that is shown of it.

import { latencyChart, loadChart } from "./charts.js";
import { block, el, fill, ms, percent, rate, table, write } from "./dom.js";
import { Instances } from "./instances.js";

const FATES = ["sent", "answered", "cancelled"];

export class Server {
  constructor(name) {
    this.state = el("span", { className: "badge" }, "starting");
    this.policy = el("span", { className: "quiet" });
    this.facts = el("p", { className: "facts" });
    this.tails = table("tails", ["ms", "p50", "p99", "p99.9"]);
    this.sources = el("div", { className: "sources", role: "img" });
    this.differing = el("p", { className: "facts" });
    this.gates = el("ul", { className: "gates" });
    this.instances = new Instances();
    this.redundancy = el("p", { className: "quiet" });
    this.redundant = table("redundant", ["tasks", ...FATES]);
    this.none = el("p", { className: "quiet" }, "None: only the originals were sent.");
    this.events = el("ol", { className: "events", role: "log", "aria-live": "polite", tabIndex: 0 });
    this.latency = latencyChart();
    this.load = loadChart();
    this.element = el("section", { className: "side" },
      el("h2", {}, name ? `${name} ` : "", this.state, " ", this.policy),
      this.facts,
      this.differing,
      this.gates,
      block("Instances", this.instances.element),
      el("div", { className: "blocks" },
        block("Latency", this.tails, this.latency.element),
        block("Where answers come from", this.sources, this.load.element),
        block("Redundant work", this.redundancy, this.none, this.redundant),
        block("Events", this.events)));
  }

  show(frame) {
    const off = frame.redundancy.endsWith("switched off");
    write(this.state, !frame.ready ? "not ready" :
      frame.degraded ? "degraded: no instance of the model is up, stand-ins answer" :
      off ? "ready, redundant work is switched off" : "ready");
    this.state.dataset.state = frame.ready && !frame.degraded ? "up" : "ejected";
    this.element.classList.remove("away");
    write(this.policy, `policy ${frame.policy}`);
    const latest = frame.points.at(-1);
    const { asked = 0, queued = 0, busy = 0, failed = 0, answers = {}, answered } = latest ?? {};
    write(this.facts, `${rate(asked)} queries/s · ${queued} waiting · instances ` +
      `${percent(busy)} busy · ${rate(failed)} failed/s`);
    this.instances.show(frame.instances);
    fill(this.tails, [["10 s", ms(answered?.p50), ms(answered?.p99), ms(answered?.p999)]]);
    this.showSources(answers);
    this.differing.hidden = !frame.differing;
    write(this.differing, frame.differing);
    this.showGates(frame.gates);
    write(this.redundancy, frame.redundancy);
    const kinds = Object.entries(frame.redundant);
    this.none.hidden = kinds.length > 0;
    this.redundant.hidden = kinds.length === 0;
    fill(this.redundant, kinds.map(([kind, fates]) =>
      [kind, ...FATES.map((fate) => (fates[fate] ?? 0).toLocaleString("en"))]));
    this.showEvents(frame.events);
    if (latest && latest.at !== this.shown) {
      this.shown = latest.at;
      this.latency.show(frame.points);
      this.load.show(frame.points);
    }
  }

  away() {
    write(this.state, "no connection");
    this.state.dataset.state = "gone";
    this.element.classList.add("away");
  }

  // It is shown no more.
  end() {
    this.element.remove();
    this.latency.end();
    this.load.end();
  }

  showSources(answers) {
    const parts = Object.entries(answers).filter(([, count]) => count > 0);
    const total = parts.reduce((sum, [, count]) => sum + count, 0);
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
    const lines = gates.map((gate) => [gate.open, gateWords(gate), gate.turns, gate.turned]);
    if (lines.length === 0) lines.push([true, "no stand-in answers with this policy", [], ""]);
    const key = lines.join("\n");
    if (this.gates.dataset.key === key) return;
    this.gates.dataset.key = key;
    this.gates.replaceChildren(...lines.map(([open, text, turns, turned]) =>
      el("li", { "data-state": open ? "up" : "ejected" }, text, ...steps(turns), " ", turned)));
  }

  showEvents(events) {
    const key = events.at(-1)?.at;
    if (this.events.dataset.key === String(key)) return;
    this.events.dataset.key = key;
    this.events.replaceChildren(...events.toReversed().map((event) => el("li", { "data-kind": event.kind },
      el("time", {}, new Date(1000 * event.at).toLocaleTimeString()), " ", el("span", {}, event.text))));
  }
}

function gateWords({ source, level, open, coverage, compared, agreed, late_compared, late_agreed }) {
  const share = compared ? `${percent(agreed / compared)} of ${compared} agree` : "not compared yet";
  const late = late_compared ? `, given late ${percent(late_agreed / late_compared)} of ${late_compared}` : "";
  const gate = level ? `; its gate promises ${percent(level)}` : "; it has no gate";
  const state = !level ? "" : open ? ` and covers ${percent(coverage)}` : " · GATE CLOSED";
  return `${source}: ${share}${late}${gate}${state}`;
}

// How far a gate has opened, over its comparisons: a small picture.
function steps(turns) {
  if (turns.length < 2) return [];
  const most = Math.max(1, ...turns.map(([compared]) => compared));
  const path = turns.map(([compared, coverage], at) => {
    const [x, y] = [(60 * compared) / most, 14 - 13 * coverage];
    return at ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `M${x.toFixed(1)} ${y.toFixed(1)}`;
  }).join("");
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", "0 0 60 15");
  picture.setAttribute("class", "steps");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", "coverage over comparisons");
  picture.innerHTML = `<path d="${path}"/>`;
  return [picture];
}
