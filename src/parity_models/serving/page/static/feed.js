// Follows events, connection after connection, until a signal (of an AbortController) ends it: the
// first frame of a connection has everything, later ones what is new.

import { ask } from "./access.js";

const POINTS = 300;
const REQUESTS = 24;
const EVENTS = 100;
const RETRY = 500; // milliseconds

// Shows each frame, and whether it is the first of a connection.
export async function frames(url, show, away, signal) {
  for (;;) {
    let first = true;
    for await (const data of events(url, signal)) {
      show(JSON.parse(data), first);
      first = false;
    }
    if (signal?.aborted) return;
    away();
    await new Promise((done) => setTimeout(done, RETRY));
  }
}

// Of a server: keeps what has come, and shows all of it.
export function follow(url, show, away, signal) {
  let state;
  return frames(url, (frame, first) => {
    if (first) state = { points: [], requests: new Map(), events: [] };
    state.fresh = merge(state, frame);
    state.frame = frame;
    show(state);
  }, away, signal);
}

// The data of server-sent events, until they end. Not by EventSource, which sends no token.
async function* events(url, signal) {
  let text = "";
  let reader;
  try {
    const answer = await ask(url, { signal });
    if (!answer.ok) return;
    reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  } catch {
    return; // there is no server, or nobody wants to know any more
  }
  for (;;) {
    const piece = await reader.read().catch(() => ({ done: true }));
    if (piece.done) return;
    const parts = (text + piece.value).split("\n\n");
    text = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
}

// Whether there are new points.
function merge(state, frame) {
  const lastPoint = state.points.at(-1)?.at ?? 0;
  const points = frame.points.filter((point) => point.at > lastPoint);
  state.points = [...state.points, ...points].slice(-POINTS);
  for (const request of frame.requests) {
    state.requests.set(request.unit, request);
  }
  for (const unit of state.requests.keys()) {
    if (state.requests.size <= REQUESTS) break;
    state.requests.delete(unit);
  }
  const lastEvent = state.events.at(-1)?.number ?? 0;
  const events = frame.events.filter((event) => event.number > lastEvent);
  state.events = [...state.events, ...events].slice(-EVENTS);
  return points.length > 0;
}
