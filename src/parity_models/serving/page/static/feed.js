// Requests with the server's token, and a server's frames.

import { el } from "./dom.js";

const KEY = "parm-token";
const INTERVAL = 500; // milliseconds

// The token comes from the page's address, after #token=, or is typed. It is kept for this tab; it
// goes into headers, and never into an address that is sent or logged.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname + location.search);
}

let typing = null;

// As fetch, with the token; asks for one where the server refuses.
export async function ask(url, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers = { ...options.headers };
    if (token) headers.Authorization = `Bearer ${token}`;
    const answer = await fetch(url, { ...options, headers });
    if (answer.status !== 401) return answer;
    typing ??= typed(token !== null).finally(() => { typing = null; });
    await typing;
  }
}

// Shows a form until a token has been typed into it.
async function typed(wrong) {
  const input = el("input", { type: "password", id: "token", required: true, autocomplete: "off" });
  const text = wrong ? "The server does not take this token. Another one: " : "Token ";
  const form = el("form", { id: "login" },
    el("label", { htmlFor: "token" }, text), input, " ", el("button", {}, "Show"));
  document.querySelector("header").append(form);
  input.focus();
  await new Promise((done) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      done();
    });
  });
  sessionStorage.setItem(KEY, input.value.trim());
  form.remove();
}

// Shows a server's frames, one after another, until the signal (of an AbortController) ends it.
export async function follow(url, show, away, signal) {
  while (!signal.aborted) {
    const answer = await ask(url, { signal }).catch(() => null); // there is no server
    const frame = answer?.ok ? await answer.json().catch(() => null) : null;
    if (signal.aborted) return;
    if (frame) show(frame);
    else away();
    await new Promise((done) => { setTimeout(done, INTERVAL); });
  }
}
