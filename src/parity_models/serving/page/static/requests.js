// Requests to stand-ins as they happen: a row each, with the queries of its coding group.

import { el, ms, write } from "./dom.js";
import { kind } from "./instances.js";

const SHOWN = 10;
const OUTCOMES = {
  running: "runs",
  answered: "answered",
  late: "not needed",
  compared: "to be compared",
  refused: "refused by the gate",
  cancelled: "cancelled",
  lost: "lost",
};

export class Requests {
  constructor() {
    this.body = el("tbody");
    this.none = el("p", { className: "quiet" }, "None: nothing was sent besides the originals.");
    this.element = el("div", {}, this.none, el("table", { className: "requests" },
      el("thead", {}, el("tr", {}, ...["stand-in", "on", "for queries", "outcome", "ms"].map(
        (text) => el("th", { scope: "col" }, text)))),
      this.body));
    this.rows = new Map();
  }

  show(requests) {
    const latest = [...requests.values()].slice(-SHOWN);
    this.none.hidden = latest.length > 0;
    const shown = new Set(latest.map((request) => request.unit));
    for (const [unit, row] of this.rows) {
      if (shown.has(unit)) continue;
      row.remove();
      this.rows.delete(unit);
    }
    for (const request of latest) {
      let row = this.rows.get(request.unit);
      if (!row) {
        row = el("tr", {}, el("td"), el("td"), el("td"), el("td"), el("td"));
        this.rows.set(request.unit, row);
        this.body.prepend(row);
      }
      fill(row, request);
    }
  }
}

function fill(row, request) {
  const [role, instance, queries, outcome, time] = row.children;
  row.dataset.outcome = request.outcome;
  row.dataset.kind = kind(request.role);
  write(role, request.role);
  write(instance, request.instance);
  write(outcome, OUTCOMES[request.outcome]);
  write(time, ms(request.ms));
  const answered = new Set(request.answered);
  const key = `${request.queries}/${request.answered}`;
  if (queries.dataset.key === key) return;
  queries.dataset.key = key;
  queries.replaceChildren(...request.queries.slice(0, 8).map((query) => el("span", {
    className: answered.has(query) ? "query answered" : "query",
    title: answered.has(query) ? "answered by this stand-in" : "answered otherwise",
  }, `${query}`)));
}
