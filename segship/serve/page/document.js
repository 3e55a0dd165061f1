// SPDX-License-Identifier: Apache-2.0
// What the person has made of a picture: objects with prompts, and every state before, to undo and to redo.
//
// States and objects are never changed, only replaced. An answer belongs to the very `prompts` it was asked with
// (`Answers`), so one that comes late cannot cover the mask of newer prompts, and undo finds its mask at once.

export const COLORS = ["#1e90ff", "#ff8c00", "#ba55d3", "#ffd700", "#00ced1", "#ff69b4", "#9acd32", "#cd5c5c"];
const MOST_STATES = 500;

export const NO_PROMPTS = Object.freeze({ points: Object.freeze([]), box: null });

/** What stands for the prompts of a mask that nobody asks again, of everything in the picture or of a class. */
export const keptPrompts = (mask, score) => Object.freeze({ ...NO_PROMPTS, kept: Object.freeze([{ mask, score }]) });

export const isEmpty = (prompts) => !prompts.kept && !prompts.points.length && !prompts.box;

export class Annotation {
  constructor(changed) {
    this.changed = changed;
    this.clear();
  }

  reset() {
    this.clear();
    this.changed();
  }

  clear() {
    this.state = Object.freeze({ objects: Object.freeze([]), active: null });
    this.past = [];
    this.future = [];
    this.made = 0;
  }

  get objects() {
    return this.state.objects;
  }

  get active() {
    return this.objects.find((object) => object.id === this.state.active) ?? null;
  }

  commit(objects, active = this.state.active) {
    this.past.push(this.state);
    if (this.past.length > MOST_STATES) this.past.shift();
    this.future = [];
    this.state = Object.freeze({ objects: Object.freeze(objects), active });
    this.changed();
  }

  /** Make another object the active one, which is no step to undo. */
  activate(id) {
    if (id === this.state.active) return;
    this.state = Object.freeze({ ...this.state, active: id });
    this.changed();
  }

  /** Add objects in one step: {name, prompts, color} each, of which prompts and color are optional. */
  add(...added) {
    const made = added.map(({ name, prompts = NO_PROMPTS, color = this.freeColor() }) => {
      return Object.freeze({ id: ++this.made, name, color, hidden: false, prompts, choice: null });
    });
    this.commit([...this.objects, ...made], made.at(-1).id);
  }

  change(id, values) {
    this.commit(this.objects.map((object) => (object.id === id ? Object.freeze({ ...object, ...values }) : object)));
  }

  /** Remove an object; the next in the list becomes the active one. */
  remove(id) {
    const place = this.objects.findIndex((object) => object.id === id);
    const left = this.objects.filter((object) => object.id !== id);
    const next = left[Math.min(place, left.length - 1)]?.id ?? null;
    this.commit(left, id === this.state.active ? next : this.state.active);
  }

  undo() {
    return this.travel(this.past, this.future);
  }

  redo() {
    return this.travel(this.future, this.past);
  }

  travel(from, to) {
    if (!from.length) return false;
    to.push(this.state);
    this.state = from.pop();
    this.changed();
    return true;
  }

  /** The first color of the least used ones. */
  freeColor() {
    const uses = COLORS.map((color) => this.objects.filter((object) => object.color === color).length);
    return COLORS[uses.indexOf(Math.min(...uses))];
  }
}

/** Masks by the prompts they were asked with: [{mask, score}, ...], and what went wrong. */
export class Answers {
  constructor() {
    this.clear();
  }

  clear() {
    this.found = new WeakMap();
    this.failed = new WeakSet();
    this.last = new Map();
  }

  put(prompts, masks) {
    this.failed.delete(prompts);
    this.found.set(prompts, masks);
  }

  get(prompts) {
    return prompts.kept ?? this.found.get(prompts) ?? null;
  }

  /** What to show of an object: its candidates, which of them, and whether newer prompts are still being answered. */
  shown(object) {
    const candidates = this.get(object.prompts);
    if (candidates) {
      const place = Math.min(object.choice ?? bestOf(candidates), candidates.length - 1);
      const shown = { candidates, place, ...candidates[place], stale: false };
      this.last.set(object.id, shown);
      return shown;
    }
    if (isEmpty(object.prompts)) {
      this.last.delete(object.id);
      return null;
    }
    const before = this.last.get(object.id);
    return before ? { ...before, stale: true } : null;
  }
}

function bestOf(candidates) {
  const scores = candidates.map((candidate) => candidate.score ?? 0);
  return Math.max(0, scores.indexOf(Math.max(...scores)));
}
