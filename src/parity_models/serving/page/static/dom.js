// Small helpers to make elements and to write numbers.

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Sets text only where it differs, so that nothing is laid out or read aloud again in vain.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function block(title, ...content) {
  return el("div", { className: "block" }, el("h3", {}, title), ...content);
}

export function table(className, headings) {
  const columns = headings.map((text) => el("th", { scope: "col" }, text));
  return el("table", { className }, el("thead", {}, el("tr", {}, ...columns)), el("tbody"));
}

// Gives the table a row for each of the texts, the first of which is its heading.
export function fill(element, rows) {
  const body = element.tBodies[0];
  while (body.children.length > rows.length) body.lastChild.remove();
  rows.forEach((texts, number) => {
    const row = body.children[number] ?? body.appendChild(el("tr", {},
      ...texts.map((_, column) => column ? el("td") : el("th", { scope: "row" }))));
    texts.forEach((text, column) => write(row.children[column], text));
  });
}

export function ms(value) {
  return value === null || value === undefined ? "–" : rate(value);
}

export function rate(value) {
  return value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

export function percent(share) {
  return `${(100 * share).toFixed(share > 0.9 && share < 1 ? 1 : 0)} %`;
}
