// SPDX-License-Identifier: Apache-2.0
// The picture on the screen: zoom and pan, what pointers mean, and the drawing of masks and prompts over it.
//
// Three canvases lie over one another, so that what moves with the pointer repaints alone: the picture, the masks, the
// marks. All coordinates that go in and come out are pixels of the upright picture.

const MOST_ZOOM = 32;
const CLICK_SLACK = { mouse: 4, touch: 10, pen: 6 };
const DOUBLE_CLICK_MS = 350;
const KEY_STEP = 10;
const POINT_RADIUS = 6;
const COLOR_OF_LABEL = ["#d92d20", "#12813f"];

export class Stage {
  /** on: {press(x, y, label), box([x0, y0, x1, y1]), hover(point or null), view()}. */
  constructor(element, on) {
    this.element = element;
    this.on = on;
    this.canvases = [...element.querySelectorAll("canvas")];
    this.picture = null;
    this.tool = "include";
    this.hasBoxes = true;
    this.shapes = [];
    this.marks = { points: [], boxes: [] };
    this.highlight = null;
    this.cursor = null;
    this.corner = null;
    this.pointers = new Map();
    this.gesture = null;
    this.isSpaceDown = false;
    this.view = { scale: 1, x: 0, y: 0 };
    this.isFitted = true;
    this.dirty = new Set();
    this.listen();
  }

  // ---- the view

  setPicture(picture) {
    this.picture = picture;
    this.cursor = null;
    this.corner = null;
    this.highlight = null;
    this.gesture = null;
    this.fit();
  }

  get size() {
    return [this.element.clientWidth, this.element.clientHeight];
  }

  get fittingScale() {
    const [width, height] = this.size;
    return Math.min((width - 24) / this.picture.width, (height - 24) / this.picture.height, 8);
  }

  fit() {
    if (!this.picture) return this.repaint(0, 1, 2);
    const [width, height] = this.size;
    const scale = Math.max(this.fittingScale, 1e-3);
    this.isFitted = true;
    this.setView({ scale, x: (width - this.picture.width * scale) / 2, y: (height - this.picture.height * scale) / 2 });
  }

  setView(view) {
    this.lastPress = null;
    const [width, height] = this.size;
    // Some of the picture stays to be seen.
    const keep = (offset, length, room) => Math.min(Math.max(offset, 60 - length), room - 60);
    view.x = keep(view.x, this.picture.width * view.scale, width);
    view.y = keep(view.y, this.picture.height * view.scale, height);
    this.view = view;
    this.repaint(0, 1, 2);
    this.on.view();
  }

  pan(dx, dy) {
    this.isFitted = false;
    this.setView({ ...this.view, x: this.view.x + dx, y: this.view.y + dy });
  }

  /** Zoom by a factor; what is at x, y of the element stays there, its middle if they are left out. */
  zoom(factor, x = this.size[0] / 2, y = this.size[1] / 2) {
    if (!this.picture) return;
    const least = Math.min(this.fittingScale / 2, 1);
    const scale = Math.min(Math.max(this.view.scale * factor, least), MOST_ZOOM);
    const grown = scale / this.view.scale;
    this.isFitted = false;
    this.setView({ scale, x: x - (x - this.view.x) * grown, y: y - (y - this.view.y) * grown });
  }

  toPicture(x, y) {
    return [(x - this.view.x) / this.view.scale, (y - this.view.y) / this.view.scale];
  }

  isInside([x, y]) {
    return this.picture !== null && x >= 0 && y >= 0 && x < this.picture.width && y < this.picture.height;
  }

  // ---- pointers

  listen() {
    const { element } = this;
    const handle = (name, use, options) => element.addEventListener(name, (event) => this.picture && use(event), options);
    handle("pointerdown", (event) => this.pointerDown(event));
    handle("pointermove", (event) => this.pointerMove(event));
    handle("pointerup", (event) => this.pointerUp(event));
    handle("pointercancel", (event) => this.forget(event));
    handle("pointerleave", () => this.gesture || this.on.hover(null));
    // The middle button moves the picture, and scrolls nothing.
    handle("mousedown", (event) => event.button === 1 && event.preventDefault());
    handle("contextmenu", (event) => event.preventDefault());
    handle("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
      const speed = event.ctrlKey ? 0.01 : 0.002;
      this.zoom(Math.exp(-event.deltaY * lines * speed), ...this.place(event));
    }, { passive: false });
    new ResizeObserver(() => this.resize()).observe(element);
  }

  place(event) {
    const box = this.element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  pointerDown(event) {
    if (event.target.closest("button")) return;
    this.element.focus({ preventScroll: true });
    this.element.setPointerCapture(event.pointerId);
    const place = this.place(event);
    this.pointers.set(event.pointerId, place);
    if (this.pointers.size > 1) {
      this.gesture = { kind: "pinch" };
    } else if (event.button === 1 || this.isSpaceDown || this.tool === "pan") {
      event.preventDefault();
      this.gesture = { kind: "pan" };
    } else {
      const excludes = event.button === 2 || event.altKey;
      const label = excludes || this.tool === "exclude" ? 0 : 1;
      this.gesture = { kind: "press", start: place, label, drags: this.whatDrags(event, excludes) };
    }
    this.element.dataset.gesture = this.gesture.kind;
  }

  whatDrags(event, excludes) {
    if (!this.hasBoxes || (event.pointerType === "touch" && this.tool !== "box")) return "pan";
    return excludes ? "nothing" : "box";
  }

  pointerMove(event) {
    const place = this.place(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) return this.on.hover(this.isInside(this.toPicture(...place)) ? this.toPicture(...place) : null);
    if (this.gesture?.kind === "pinch") this.pinch(event.pointerId, place);
    this.pointers.set(event.pointerId, place);
    if (this.gesture?.kind === "press") this.startDrag(event, place);
    else if (this.gesture?.kind === "pan") this.pan(place[0] - before[0], place[1] - before[1]);
    if (this.gesture?.kind === "box") {
      this.gesture.end = place;
      this.repaint(2);
    }
  }

  startDrag(event, place) {
    const { start, drags } = this.gesture;
    const slack = CLICK_SLACK[event.pointerType] ?? CLICK_SLACK.mouse;
    if (Math.hypot(place[0] - start[0], place[1] - start[1]) <= slack) return;
    this.gesture.kind = drags;
    this.element.dataset.gesture = drags;
    if (drags === "pan") this.pan(place[0] - start[0], place[1] - start[1]);
  }

  pinch(id, place) {
    const [[, other]] = [...this.pointers].filter(([one]) => one !== id);
    const before = this.pointers.get(id);
    const distance = (a, b) => Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1);
    const middle = [(place[0] + other[0]) / 2, (place[1] + other[1]) / 2];
    this.pan((place[0] - before[0]) / 2, (place[1] - before[1]) / 2);
    this.zoom(distance(place, other) / distance(before, other), ...middle);
  }

  pointerUp(event) {
    const { gesture } = this;
    this.forget(event);
    if (!gesture || this.pointers.size) return;
    if (gesture.kind === "press") this.press(gesture);
    if (gesture.kind === "box") this.finishBox(this.toPicture(...gesture.start), this.toPicture(...gesture.end));
  }

  forget(event) {
    this.pointers.delete(event.pointerId);
    if (!this.pointers.size) this.cancel();
  }

  press({ start, label }) {
    const [now, before] = [performance.now(), this.lastPress];
    const isDouble = before && now - before.time < DOUBLE_CLICK_MS && Math.hypot(start[0] - before.x, start[1] - before.y) < 4;
    this.lastPress = { time: now, x: start[0], y: start[1] };
    const point = this.toPicture(...start);
    if (!isDouble && this.isInside(point)) this.on.press(...point.map(Math.floor), label);
  }

  finishBox(a, b) {
    const { width, height } = this.picture;
    const within = (value, most) => Math.min(Math.max(Math.round(value), 0), most);
    const [x0, x1] = [a[0], b[0]].map((x) => within(x, width)).sort((one, other) => one - other);
    const [y0, y1] = [a[1], b[1]].map((y) => within(y, height)).sort((one, other) => one - other);
    if (x1 > x0 && y1 > y0) this.on.box([x0, y0, x1, y1]);
  }

  /** End what a pointer or the keyboard has begun; return whether there was something. */
  cancel() {
    const had = this.gesture !== null || this.corner !== null;
    this.gesture = null;
    this.corner = null;
    delete this.element.dataset.gesture;
    this.repaint(2);
    return had;
  }

  setSpace(isDown) {
    this.isSpaceDown = isDown;
    this.element.classList.toggle("grabbing", isDown);
  }

  // ---- the keyboard's cross hair

  /** Move the cross hair by steps; the first move shows it in the middle of the view. */
  moveCursor(dx, dy, isFine) {
    const { width, height } = this.picture;
    const step = isFine ? 1 : Math.max(1, Math.round(KEY_STEP / this.view.scale));
    const [x, y] = this.cursor ?? this.toPicture(...this.size.map((side) => side / 2)).map(Math.floor);
    const within = (value, most) => Math.min(Math.max(value, 0), most - 1);
    this.cursor = [within(x + dx * step, width), within(y + dy * step, height)];
    this.reveal(this.cursor);
    this.repaint(2);
    this.on.hover(this.cursor);
  }

  reveal([x, y]) {
    const margin = 40;
    const shift = (place, room) => Math.max(margin - place, 0) + Math.min(room - margin - place, 0);
    const [width, height] = this.size;
    const dx = shift(x * this.view.scale + this.view.x, width);
    const dy = shift(y * this.view.scale + this.view.y, height);
    if (dx || dy) this.pan(dx, dy);
  }

  hideCursor() {
    this.cursor = null;
    this.repaint(2);
  }

  /** Begin a box at the cross hair, or end it there. */
  boxCorner() {
    const [x, y] = this.cursor;
    if (!this.corner) {
      this.corner = [x, y];
      return this.repaint(2);
    }
    const { corner } = this;
    this.corner = null;
    this.finishBox([Math.min(corner[0], x), Math.min(corner[1], y)], [Math.max(corner[0], x) + 1, Math.max(corner[1], y) + 1]);
  }

  // ---- drawing

  /** shapes: [{mask, color, opacity, outline, dashed}, ...], later ones above. */
  show(shapes, marks) {
    this.shapes = shapes;
    this.marks = marks;
    this.repaint(1, 2);
  }

  /** A shape over all others, or null. */
  setHighlight(shape) {
    if (shape?.mask === this.highlight?.mask) return;
    this.highlight = shape;
    this.repaint(2);
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    const [width, height] = this.size;
    for (const canvas of this.canvases) {
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
    }
    if (this.picture && !this.isFitted) this.setView({ ...this.view });
    else this.fit();
  }

  repaint(...layers) {
    if (!this.dirty.size) requestAnimationFrame(() => this.paint());
    layers.forEach((layer) => this.dirty.add(layer));
  }

  paint() {
    const layers = [...this.dirty];
    this.dirty.clear();
    for (const layer of layers) {
      const context = this.canvases[layer].getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, this.canvases[layer].width, this.canvases[layer].height);
      const ratio = this.canvases[layer].width / Math.max(this.size[0], 1);
      const { scale, x, y } = this.view;
      context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);
      if (this.picture) [this.paintPicture, this.paintMasks, this.paintMarks][layer].call(this, context, ratio);
    }
  }

  paintPicture(context, ratio) {
    const { levels, width, height } = this.picture;
    const wanted = width * this.view.scale * ratio;
    const level = levels.findLast((one) => one.width >= wanted) ?? levels[0];
    context.imageSmoothingEnabled = this.view.scale * ratio < 3;
    context.imageSmoothingQuality = "medium";
    context.drawImage(level, 0, 0, width, height);
  }

  paintMasks(context) {
    for (const shape of this.shapes) this.paintShape(context, shape);
  }

  paintShape(context, { mask, color, opacity, outline = true, dashed = false }) {
    const { scale } = this.view;
    context.fillStyle = color;
    context.globalAlpha = opacity;
    if (opacity) context.fill(mask.path, "evenodd");
    context.globalAlpha = 1;
    if (!outline) return;
    context.lineJoin = "round";
    context.setLineDash(dashed ? [6 / scale, 4 / scale] : []);
    for (const [stroke, width] of [["rgb(0 0 0 / 0.55)", 4], [color, 2]]) {
      context.strokeStyle = stroke;
      context.lineWidth = width / scale;
      context.stroke(mask.path);
    }
    context.setLineDash([]);
  }

  paintMarks(context) {
    if (this.highlight) this.paintShape(context, this.highlight);
    this.marks.boxes.forEach((box) => this.paintBox(context, box));
    if (this.gesture?.kind === "box") {
      this.paintBox(context, [...this.toPicture(...this.gesture.start), ...this.toPicture(...this.gesture.end)]);
    }
    if (this.corner) this.paintBox(context, [...this.corner, ...this.cursor.map((value) => value + 1)]);
    this.marks.points.forEach((point) => this.paintPoint(context, point));
    if (this.cursor) this.paintCursor(context);
  }

  /** Stroke a path in light over dark, so that it is seen on every picture. */
  strokeTwice(context, path, [below, above], width) {
    for (const [color, wide] of [[below, width + 2], [above, width]]) {
      context.strokeStyle = color;
      context.lineWidth = wide / this.view.scale;
      context.stroke(path);
    }
  }

  paintBox(context, [x0, y0, x1, y1]) {
    const path = new Path2D();
    path.rect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
    this.strokeTwice(context, path, ["rgb(0 0 0 / 0.6)", "#fff"], 2);
  }

  /** A point is a disk with a plus or a minus, so that color is not all that tells them apart. */
  paintPoint(context, [x, y, label]) {
    const unit = 1 / this.view.scale;
    const disk = new Path2D();
    disk.arc(x + 0.5, y + 0.5, POINT_RADIUS * unit, 0, 2 * Math.PI);
    this.strokeTwice(context, disk, ["rgb(0 0 0 / 0.6)", "#fff"], 2);
    context.fillStyle = COLOR_OF_LABEL[label];
    context.fill(disk);
    const sign = new Path2D(`M${x + 0.5 - 3 * unit} ${y + 0.5}h${6 * unit}${label ? `m${-3 * unit} ${-3 * unit}v${6 * unit}` : ""}`);
    context.strokeStyle = "#fff";
    context.lineWidth = 2 * unit;
    context.stroke(sign);
  }

  paintCursor(context) {
    const unit = 1 / this.view.scale;
    const [x, y] = this.cursor.map((value) => value + 0.5);
    const arms = [[1, 0], [-1, 0], [0, 1], [0, -1]];
    const path = new Path2D(arms.map(([a, b]) => `M${x + 4 * a * unit} ${y + 4 * b * unit}l${14 * a * unit} ${14 * b * unit}`).join(""));
    this.strokeTwice(context, path, ["#000", "#fff"], 2);
  }
}
