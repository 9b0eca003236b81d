// A list of events, the latest first.

import { clock, el } from "./dom.js";

const KEPT = 100;

export class Events {
  constructor() {
    this.element = el("ol", { className: "events", role: "log", "aria-live": "polite", tabIndex: 0 });
    this.last = 0;
  }

  // Shows those of them, oldest first, that are not shown yet.
  show(events) {
    if (this.last === 0) this.element.replaceChildren();
    for (const event of events) {
      if (event.number <= this.last) continue;
      this.last = event.number;
      this.element.prepend(el("li", { "data-kind": event.kind },
        el("time", {}, clock(event.at)), " ", el("span", {}, event.text)));
    }
    while (this.element.children.length > KEPT) this.element.lastChild.remove();
  }

  // Numbers begin anew with what is shown next: it is of another server, or of another model.
  startAnew() {
    this.last = 0;
  }
}
