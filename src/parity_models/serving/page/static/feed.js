// Requests with the server's token, and a server's frames.

import { el } from "./dom.js";

const KEY = "parm-token";
const RETRY = 500; // milliseconds

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

// Follows a server, connection after connection, until the signal (of an AbortController) ends it.
export async function follow(url, show, away, signal) {
  while (!signal.aborted) {
    for await (const data of events(url, signal)) show(JSON.parse(data));
    if (!signal.aborted) away();
    await new Promise((done) => { setTimeout(done, RETRY); });
  }
}

// The data of server-sent events, until they end. Not by EventSource, which sends no token.
async function* events(url, signal) {
  const answer = await ask(url, { signal }).catch(() => null); // there is no server
  if (!answer?.ok) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const piece = await reader.read().catch(() => ({ done: true }));
    if (piece.done) return;
    const parts = (text + piece.value).split("\n\n");
    text = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
}
