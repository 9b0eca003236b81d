// Charts over the last minutes (uPlot), each with a sentence for those who cannot see it.

import { el, ms, rate } from "./dom.js";

const HEIGHT = 170;
const COUNTS = [1, 5, 10, 50, 100, 500, 1000, 5000];
const LATENCY = [
  ["p50", "--ink", [], (point) => point.answered?.p50],
  ["p99", "--model", [], (point) => point.answered?.p99],
  ["p99.9", "--standin", [], (point) => point.answered?.p999],
];
const LOAD = [
  ["asked /s", "--ink", [], (point) => point.asked],
  ["by stand-ins /s", "--standin", [], standIns],
  ["failed /s", "--bad", [], (point) => point.failed],
  ["queue", "--model", [5, 4], (point) => point.queued],
];

export const latencyChart = () => new Chart("Latency, ms", LATENCY, { distr: 3 }, {}, (point) =>
  `p99 is ${ms(point.answered?.p99)} ms, p99.9 ${ms(point.answered?.p999)} ms`);

export const loadChart = () => new Chart("Load and queue", LOAD, { range: fromZero }, { incrs: COUNTS },
  (point) => `${rate(point.asked)} queries a second, ${point.queued} tasks wait`);

function standIns(point) {
  const { reconstruction = 0, backup = 0 } = point.answers;
  return reconstruction + backup;
}

class Chart {
  constructor(title, series, scale, axis, say) {
    Object.assign(this, { series, scale, axis, say, points: [] });
    this.frame = el("div", { className: "chart", role: "img" });
    this.element = el("figure", {}, el("figcaption", {}, title), this.frame);
    this.ending = new AbortController();
    new ResizeObserver(() =>
      this.plot?.setSize({ width: this.frame.clientWidth, height: HEIGHT })).observe(this.frame);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.remove();
      this.show(this.points);
    }, { signal: this.ending.signal });
  }

  // It is not shown any more, and nothing is to keep it.
  end() {
    this.ending.abort();
    this.remove();
  }

  remove() {
    this.plot?.destroy();
    this.plot = null;
  }

  show(points) {
    this.points = points;
    if (!points.length) return;
    const data = [points.map((point) => point.at), ...this.series.map(([, , , value]) =>
      points.map((point) => value(point) ?? null))];
    if (this.plot) this.plot.setData(data);
    else this.build(data);
    this.frame.setAttribute("aria-label", this.say(points.at(-1)));
  }

  build(data) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 } };
    this.plot = new uPlot({
      width: this.frame.clientWidth || 320,
      height: HEIGHT,
      scales: { x: { time: true }, y: this.scale },
      axes: [{ ...axis, values: (plot, times) => times.map(clock) }, { ...axis, size: 48, ...this.axis }],
      legend: { live: false },
      cursor: { show: false },
      series: [{}, ...this.series.map(([label, stroke, dash]) => ({
        label, stroke: colour(stroke), width: 2, dash, points: { show: false },
      }))],
    }, data, this.frame);
  }
}

function clock(at) {
  return new Date(1000 * at).toLocaleTimeString("en", { minute: "2-digit", second: "2-digit" });
}

function fromZero(plot, low, high) {
  return [0, Math.max(1, 1.1 * (high ?? 0))];
}
