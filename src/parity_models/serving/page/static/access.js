// The token that a server asks for, if it does: from the page's address, after #token=, or typed.
// It is kept for this tab. It goes into headers, and never into an address that is sent or logged.

import { el } from "./dom.js";

const KEY = "parm-token";

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname + location.search);
}

let typing = null;

// As fetch, with the token; where the server takes none that is known, one is asked for.
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
function typed(wrong) {
  const input = el("input", { type: "password", id: "token", required: true, autocomplete: "off" });
  const text = wrong ? "The server does not take this token. Another one: " : "Token ";
  const form = el("form", { id: "login" },
    el("label", { htmlFor: "token" }, text), input, " ", el("button", {}, "Show"));
  document.querySelector("header").append(form);
  input.focus();
  return new Promise((done) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      form.remove();
      done();
    });
  });
}
