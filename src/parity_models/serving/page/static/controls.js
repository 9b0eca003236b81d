// The demo's controls: what may be done to instances, the load, and the policies.

import { el, rate, write } from "./dom.js";

const ACTIONS = [
  ["kill", "Kill", "kill -9 its process"],
  ["stop", "Stop", "stop its process for a second"],
  ["slow", "Slow", "make its units take five times as long, or as usual again"],
  ["corrupt", "Corrupt", "have it answer wrongly, or rightly again"],
];

export function showControls(controls, sides) {
  const message = document.getElementById("message");
  const element = document.getElementById("controls");
  element.hidden = false;

  async function ask(what) {
    const answer = await fetch("control", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Parm-Token": controls.token },
      body: JSON.stringify(what),
    });
    write(message, answer.ok ? "" : (await answer.json()).error);
  }

  const shown = el("output", {}, `${rate(controls.rate)} queries/s`);
  const slider = el("input", {
    type: "range", id: "rate", min: 0, max: controls.max_rate, step: 1, value: controls.rate,
  });
  slider.addEventListener("input", () => write(shown, `${rate(+slider.value)} queries/s`));
  slider.addEventListener("change", () => ask({ type: "load", rate: +slider.value }));
  element.append(el("label", { htmlFor: "rate" }, "Load "), slider, shown);

  const choices = sides.map((side, number) => {
    const choice = el("select", { id: `policy-${number}` },
      ...controls.policies.map((policy) => el("option", { value: policy }, policy)));
    choice.addEventListener("change", () => ask({ type: "policy", side: number, policy: choice.value }));
    element.append(el("label", { htmlFor: choice.id }, `${side.name} `), choice);
    return choice;
  });

  return {
    show(number, frame) {
      const choice = choices[number];
      if (document.activeElement !== choice) choice.value = frame.policy;
    },
    // Buttons for the instance whose name `name` gives; what is done is done on both sides.
    ofInstance(name) {
      return el("span", { className: "actions" }, ...ACTIONS.map(([action, text, title]) => {
        const button = el("button", { type: "button", title }, text);
        button.addEventListener("click", () => ask({ type: action, instance: name() }));
        return button;
      }));
    },
  };
}
