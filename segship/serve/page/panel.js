// SPDX-License-Identifier: Apache-2.0
// The lists beside the picture: objects with their names, colors and candidates; the legend of classes.
//
// Rows stay the elements they are from one state to the next, so that focus and what is being typed stay too. Text of
// other people goes into text nodes and values alone.

import { t, translate } from "./strings.js";

const THUMBNAIL = [72, 48];

function make(tag, values = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

function makeIcon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

const setIcon = (button, name) => button.firstChild.firstChild.setAttribute("href", `#i-${name}`);

const scoreText = (score) => (score == null ? "" : score.toFixed(2));

/** Make a list have one row a key, in order; rows that stay keep their elements. */
function arrange(list, rows, keys, makeRow) {
  for (const [key, row] of rows) {
    if (keys.includes(key)) continue;
    row.element.remove();
    rows.delete(key);
  }
  keys.forEach((key, place) => {
    if (!rows.has(key)) rows.set(key, makeRow(key));
    const { element } = rows.get(key);
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
  });
}

export class ObjectList {
  /** on: {activate(id), change(id, values), remove(id), choose(id, place), others(id)}. */
  constructor(list, on) {
    this.list = list;
    this.on = on;
    this.rows = new Map();
  }

  /** entries: [{object, shown, failed, isActive}, ...]; picture: of thumbnails; hasOthers: more masks can be had. */
  show(entries, picture, hasOthers) {
    this.hasOthers = hasOthers;
    const byId = new Map(entries.map((entry) => [entry.object.id, entry]));
    const hadFocus = this.list.contains(document.activeElement);
    arrange(this.list, this.rows, [...byId.keys()], (id) => this.makeRow(id));
    for (const [id, row] of this.rows) this.fillRow(row, byId.get(id), picture);
    // A deleted row leaves the keyboard at the one that is active now.
    if (hadFocus && !this.list.contains(document.activeElement)) this.list.querySelector("[aria-current] .name")?.focus();
  }

  makeRow(id) {
    const { on } = this;
    const color = make("input", { type: "color", onchange: () => on.change(id, { color: color.value }) });
    const name = make("input", { className: "name", type: "text", maxLength: 200, spellcheck: false, autocomplete: "off" });
    name.onchange = () => on.change(id, { name: name.value });
    name.onkeydown = ({ key }) => {
      if (key === "Escape") name.value = this.rows.get(id).object.name;
      if (key === "Escape" || key === "Enter") name.blur();
    };
    const score = make("span", { className: "score" });
    const hide = make("button", { onclick: () => on.change(id, { hidden: hide.dataset.label === "show" }) }, makeIcon("shown"));
    const remove = make("button", { onclick: () => on.remove(id) }, makeIcon("remove"));
    remove.dataset.label = "remove";
    color.dataset.label = "color";
    name.dataset.label = "name";
    const candidates = make("div", { className: "candidates" });
    candidates.setAttribute("role", "group");
    const element = make("li", {}, make("div", { className: "row" }, color, name, score, hide, remove), candidates);
    element.addEventListener("focusin", (event) => event.target !== remove && on.activate(id));
    element.addEventListener("click", (event) => event.target.closest("button") !== remove && on.activate(id));
    return { element, color, name, score, hide, candidates, shownFor: null };
  }

  fillRow(row, { object, shown, failed, isActive }, picture) {
    row.color.value = object.color;
    if (document.activeElement !== row.name || row.object !== object) row.name.value = object.name;
    row.object = object;
    row.score.textContent = failed ? "!" : shown ? scoreText(shown.score) : "";
    row.element.classList.toggle("waiting", Boolean(shown?.stale));
    row.hide.dataset.label = object.hidden ? "show" : "hide";
    row.hide.dataset.key = "H";
    row.hide.setAttribute("aria-pressed", String(object.hidden));
    setIcon(row.hide, object.hidden ? "hidden" : "shown");
    if (isActive && !row.element.ariaCurrent) row.element.scrollIntoView({ block: "nearest" });
    if (isActive) row.element.setAttribute("aria-current", "true");
    else row.element.removeAttribute("aria-current");
    this.fillCandidates(row, object, isActive ? shown : null, picture);
    translate(row.element);
  }

  fillCandidates(row, object, shown, picture) {
    const offered = shown && !shown.stale && !object.prompts.kept ? shown : null;
    row.candidates.hidden = !offered;
    row.candidates.setAttribute("aria-label", t("candidates"));
    if (!offered) return;
    if (row.shownFor !== offered.candidates || row.shownIn !== object.color) {
      [row.shownFor, row.shownIn] = [offered.candidates, object.color];
      row.candidates.replaceChildren(...offered.candidates.map((candidate, place) => this.makeCandidate(object, candidate, place, picture)));
      if (offered.candidates.length === 1 && this.hasOthers) {
        const others = make("button", { className: "others", onclick: () => this.on.others(object.id) });
        others.dataset.t = "others";
        row.candidates.append(others);
      }
    }
    offered.candidates.forEach(({ score }, place) => {
      const button = row.candidates.children[place];
      const label = t("candidate", { n: place + 1, score: scoreText(score) });
      button.setAttribute("aria-pressed", String(place === offered.place));
      button.setAttribute("aria-label", label);
      button.title = `${label} (${place + 1})`;
    });
  }

  makeCandidate(object, { mask, score }, place, picture) {
    const canvas = make("canvas", { width: 2 * THUMBNAIL[0], height: 2 * THUMBNAIL[1] });
    const context = canvas.getContext("2d");
    const scale = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    context.translate((canvas.width - picture.width * scale) / 2, (canvas.height - picture.height * scale) / 2);
    context.scale(scale, scale);
    context.globalAlpha = 0.55;
    context.drawImage(picture.levels.at(-1), 0, 0, picture.width, picture.height);
    context.globalAlpha = 0.85;
    context.fillStyle = object.color;
    context.fill(mask.path, "evenodd");
    return make("button", { onclick: () => this.on.choose(object.id, place) }, canvas, make("span", { textContent: scoreText(score) }));
  }
}

/** Show classes as a legend: items of {name, color, share}; pick(item) and point(item or null) answer the pointer. */
export function showLegend(list, items, { pick, point }) {
  list.replaceChildren(...items.map((item) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = item.color;
    const share = item.share < 0.001 ? "<0.1%" : `${(100 * item.share).toFixed(1)}%`;
    const button = make("button", {}, swatch, make("span", { className: "name", textContent: item.name }), make("span", { textContent: share }));
    Object.assign(button, { onclick: () => pick(item), onmouseenter: () => point(item), onfocus: () => point(item), onmouseleave: () => point(null), onblur: () => point(null) });
    button.setAttribute("aria-pressed", "false");
    return make("li", {}, button);
  }));
}

/** Fill the help with tables of [what to do, what it does]. */
export function showHelp(root, tables) {
  root.replaceChildren(...tables.map(([title, rows]) => {
    const body = rows.map(([keys, text]) => make("tr", {}, make("th", { scope: "row" }, ...keys.flatMap((key) => [make("kbd", { textContent: key }), " "])), make("td", { textContent: text })));
    return make("table", {}, make("caption", { textContent: title }), make("tbody", {}, ...body));
  }));
}
