// The live page: asks what there is to watch, and shows each server beside the other, or the models
// of a repository.

import { ask } from "./access.js";
import { showControls } from "./controls.js";
import { follow } from "./feed.js";
import { showModels } from "./models.js";
import { Side } from "./side.js";

const about = await (await ask("about")).json();
document.title = `${about.title} · Parity Models`;
document.getElementById("title").textContent = about.title;
const main = document.getElementById("sides");
main.dataset.sides = about.sides.length;
const controls = about.controls && showControls(about.controls, about.sides);

if (about.repository) showModels(main);

about.sides.forEach((each, number) => {
  const side = new Side(each.name, about.sides.length > 1, controls);
  main.append(side.element);
  follow(each.events, (state) => {
    side.show(state);
    controls?.show(number, state.frame);
  }, () => side.away());
});
