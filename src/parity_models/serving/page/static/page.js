// The live page: one server, or the models of a repository, one of which is chosen.

import { block, el, fill, table } from "./dom.js";
import { ask, follow } from "./feed.js";
import { Server } from "./server.js";

const REFRESH = 2000; // milliseconds

const about = await (await ask("about")).json();
document.title = `${about.title} · Parity Models`;
document.getElementById("title").textContent = about.title;
const main = document.getElementById("server");

if (about.repository) showModels();
else showServer("frame", "");

// Shows a server; what is returned shows it no more.
function showServer(url, name) {
  const server = new Server(name);
  const ending = new AbortController();
  main.append(server.element);
  follow(url, (state) => server.show(state), () => server.away(), ending.signal);
  return () => {
    ending.abort();
    server.end();
  };
}

function showModels() {
  const choice = el("select", { id: "model" });
  const versions = table("versions", ["version", "state", ""]);
  const element = el("section", { id: "models", className: "side", "aria-label": "Models" },
    el("h2", {}, el("label", { htmlFor: "model" }, "Model"), " ", choice),
    block("Versions", versions));
  let wanted = new URLSearchParams(location.search).get("model");
  let index = [];
  let followed = "";
  let end = () => {};

  function show() {
    const names = [...new Set(index.map((each) => each.name))];
    if (names.join("\n") !== [...choice.options].map((each) => each.value).join("\n")) {
      choice.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
      if (names.includes(wanted)) choice.value = wanted;
    }
    const its = index.filter((each) => each.name === choice.value);
    fill(versions, its.map((each) => [each.version, each.state.toLowerCase(), each.reason ?? ""]));
    const current = its.find((each) => each.state === "READY");
    const query = current
      ? `${new URLSearchParams({ model: current.name, version: current.version })}` : "";
    if (query === followed) return;
    followed = query;
    end();
    end = current ? showServer(`frame?${query}`, `version ${current.version}`) : () => {};
  }

  async function refresh() {
    const answer = await ask("../v2/repository/index", { method: "POST" }).catch(() => null);
    element.classList.toggle("away", !answer?.ok);
    if (answer?.ok) {
      index = await answer.json();
      show();
    }
    setTimeout(refresh, REFRESH);
  }

  choice.addEventListener("change", () => {
    wanted = choice.value;
    history.replaceState(null, "", `?model=${encodeURIComponent(wanted)}${location.hash}`);
    show();
  });
  main.before(element);
  refresh();
}
