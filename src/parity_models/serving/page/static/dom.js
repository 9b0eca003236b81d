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

export function ms(value) {
  if (value === null || value === undefined) return "–";
  return value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

export function rate(value) {
  return value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

export function percent(share) {
  return `${(100 * share).toFixed(share > 0.9 && share < 1 ? 1 : 0)} %`;
}

export function clock(at) {
  return new Date(1000 * at).toLocaleTimeString();
}

export function block(title, ...content) {
  return el("div", { className: "block" }, el("h3", {}, title), ...content);
}
