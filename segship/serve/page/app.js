// SPDX-License-Identifier: Apache-2.0
// The page: what the person does becomes prompts, prompts become questions to the service, answers become masks.

import { Annotation, Answers, COLORS, isEmpty, keptPrompts } from "./document.js";
import { askKey, askLoss, openHelp } from "./dialogs.js";
import { FORMATS, download, safeStem } from "./files.js";
import { Mask } from "./mask.js";
import { ObjectList, showLegend } from "./panel.js";
import { readPicture } from "./picture.js";
import { RemotePicture, Service, ServiceError, nameClasses } from "./service.js";
import { Stage } from "./stage.js";
import { cancelJob, fail, isWaiting, megabytes, report, retry, say, showJob, showStatus } from "./status.js";
import { language, t, translate } from "./strings.js";

const SLOW_MS = 200;
const NEAR_POINT = 9;

const $ = (id) => document.getElementById(id);

const annotation = new Annotation(changed);
const answers = new Answers();
const service = new Service({ askKey, waiting: (seconds) => say("state.waiting", { seconds: Math.ceil(seconds) }) });
const stage = new Stage($("stage"), { press, box: addBox, hover, view: showZoom });
const list = new ObjectList($("list"), {
  activate: (id) => annotation.activate(id),
  change: (id, values) => annotation.change(id, values),
  remove: removeObject,
  choose: chooseMask,
  others: askOthers,
});

let models = [];
let limits = {};
let picture = null;
let opening = 0;
let mode = "click";
let layers = {};
/** The objects as they were when they were saved last. */
let savedObjects = null;
/** Questions on their way: object id -> {prompts, ending}. */
const pending = new Map();

// ---- the picture

const promptable = () => models.filter((model) => model.task === "promptable");
const semantic = () => models.filter((model) => model.task === "semantic");

async function connect() {
  say("state.starting");
  try {
    const answer = await service.json("/v1/models");
    [models, limits] = [answer.models, answer.limits ?? {}];
  } catch (error) {
    return report(error, connect);
  }
  fillSelect($("model"), promptable());
  fillSelect($("semantic-model"), semantic());
  document.querySelector("[data-mode=classes]").hidden = !semantic().length;
  if (picture) await encode();
  else say("state.ready");
}

function fillSelect(select, choices) {
  select.replaceChildren(...choices.map(({ name }) => new Option(name, name)));
  select.hidden = choices.length < 2;
}

async function open(blob, name) {
  const turn = ++opening;
  if (limits.body_bytes && blob.size > limits.body_bytes) {
    return fail("body_too_large", { found: megabytes(blob.size), accepted: megabytes(limits.body_bytes) });
  }
  if (hasUnsaved() && !(await askLoss())) return;
  say("state.reading", {}, { progress: NaN });
  // The service encodes while the browser decodes.
  const remote = upload(blob);
  let shown = blob;
  let read;
  try {
    read = await readPicture(blob).catch(async (error) => {
      if (!remote) throw error;
      // What browsers do not know, such as TIFF, the service may.
      shown = await remote.shown();
      return readPicture(shown);
    });
  } catch (error) {
    remote?.close();
    if (turn !== opening) return;
    const isKnown = error instanceof ServiceError && error.code !== "unknown_format";
    return isKnown ? report(error, () => open(blob, name)) : fail("cannot_show");
  }
  if (turn !== opening) return remote?.close();
  close();
  picture = { ...read, blob, shown, name, remote };
  $("file-name").textContent = name.replace(/[\p{Cc}\p{Cf}]/gu, "\ufffd");
  $("empty").hidden = true;
  $("zoom").hidden = false;
  stage.setPicture(picture);
  annotation.reset();
  setMode("click");
  $("stage").focus();
  await encode();
}

/** Forget the picture that is open, and every question about it. */
function close() {
  picture?.remote?.close();
  for (const { ending } of pending.values()) ending.abort();
  pending.clear();
  for (const layer of Object.values(layers)) layer.ending.abort();
  layers = {};
  answers.clear();
  showJob(null);
}

const chosenModel = () => promptable().find((model) => model.name === $("model").value);

/** Send a picture to the chosen model; null if there is none. */
function upload(blob) {
  const model = chosenModel();
  if (!model) return null;
  const remote = new RemotePicture(service, blob, model.name, (sent, isAgain) => {
    const path = isAgain ? "state.renewing" : sent < 1 ? "state.uploading" : "state.encoding";
    if (picture?.remote === remote) say(path, {}, { progress: sent < 1 ? sent : NaN });
  });
  return remote;
}

/** Wait until the picture is encoded for the chosen model; it is sent if that has not begun. */
async function encode() {
  picture.remote ??= upload(picture.blob);
  if (picture.remote) await awaitPicture(picture.remote);
  else if (semantic().length) setMode("classes");
  else if (models.length) fail("no_model");
}

async function awaitPicture(remote) {
  try {
    const { width, height, notes = [] } = await remote.ready;
    if (picture?.remote !== remote) return;
    const note = notes.find((one) => t(`note.${one}`));
    const isSame = width === picture.width && height === picture.height;
    const sizes = { shown: `${picture.width} x ${picture.height}`, read: `${width} x ${height}` };
    if (!isSame) fail("other_size", sizes);
    else say(note ? `note.${note}` : "state.encoded", { width, height });
    annotation.changed();
  } catch (error) {
    if (picture?.remote !== remote) return;
    report(error, () => {
      remote.upload();
      return awaitPicture(remote);
    });
  }
}

async function openSample() {
  try {
    const response = await service.send("/page/sample.jpg");
    await open(await response.blob(), "sample.jpg");
  } catch (error) {
    report(error, openSample);
  }
}

function openFirst(files) {
  const file = [...files].find((one) => one.type.startsWith("image/")) ?? files[0];
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) fail("no_picture");
  else open(file, file.name);
}

// ---- prompts

const newName = (after = 0) => t("object", { n: annotation.made + 1 + after });

/** Give the active object other prompts; begins a new one where there is none to go on with. */
function prompt(change) {
  const { active } = annotation;
  if (active && !active.prompts.kept) annotation.change(active.id, { prompts: Object.freeze(change(active.prompts)), choice: null, hidden: false });
  else annotation.add({ name: newName(), prompts: Object.freeze(change({ points: [], box: null })) });
}

function press(x, y, label) {
  if (mode !== "click") return keepAt(x, y);
  if (!promptable().length) return;
  stage.setHighlight(null);
  const near = pointNear(x, y);
  if (near) return prompt(({ points, box }) => ({ points: points.filter((point) => point !== near), box }));
  if ((annotation.active?.prompts.points.length ?? 0) >= (limits.points_per_object ?? Infinity)) return fail("too_many_points");
  prompt(({ points, box }) => ({ points: [...points, [x, y, label]], box }));
}

/** The point of the active object whose mark is at x, y: pressed again, it goes. */
function pointNear(x, y) {
  const points = annotation.active?.prompts.points ?? [];
  return points.find((point) => Math.hypot(point[0] - x, point[1] - y) * stage.view.scale <= NEAR_POINT);
}

function addBox(box) {
  if (mode === "click" && promptable().length) prompt(({ points }) => ({ points, box }));
}

function newObject() {
  const { active } = annotation;
  if (!picture || (active && isEmpty(active.prompts))) return;
  setMode("click");
  annotation.add({ name: newName() });
}

function removeObject(id) {
  const { name } = annotation.objects.find((object) => object.id === id);
  annotation.remove(id);
  say("state.deleted", { name });
}

// ---- masks

const candidatesOf = (masks) => masks.map(({ segmentation, predicted_iou: score }) => ({ mask: new Mask(segmentation), score }));

/** One click may mean three things; anything clearer has one answer. */
const isAmbiguous = ({ points, box }) => points.length === 1 && !box;

/** Ask for every mask that is not there, and no longer for what nobody waits for. */
function askMissing() {
  for (const [id, { prompts, ending }] of pending) {
    if (annotation.objects.some((object) => object.id === id && object.prompts === prompts)) continue;
    ending.abort();
    pending.delete(id);
  }
  if (!picture?.remote) return;
  for (const object of annotation.objects) {
    const { prompts } = object;
    if (isEmpty(prompts) || answers.get(prompts) || answers.failed.has(prompts) || pending.has(object.id)) continue;
    ask(object.id, prompts);
  }
}

async function ask(id, prompts) {
  const ending = new AbortController();
  pending.set(id, { prompts, ending });
  const isLatest = () => pending.get(id)?.ending === ending;
  const slow = setTimeout(() => isLatest() && !isWaiting() && say("state.segmenting", {}, { progress: NaN }), SLOW_MS);
  try {
    const [masks] = await picture.remote.masks([prompts], isAmbiguous(prompts), ending.signal);
    answers.put(prompts, candidatesOf(masks));
    if (isLatest()) pending.delete(id);
    render();
    if (annotation.active?.prompts === prompts) tellMask();
  } catch (error) {
    if (ending.signal.aborted) return;
    pending.delete(id);
    answers.failed.add(prompts);
    render();
    report(error, retryAll);
  } finally {
    clearTimeout(slow);
  }
}

function retryAll() {
  for (const { prompts } of annotation.objects) answers.failed.delete(prompts);
  askMissing();
}

function tellMask() {
  const { active } = annotation;
  const shown = active && answers.shown(active);
  if (!shown || shown.stale) return;
  const { candidates, place, mask, score } = shown;
  if (!mask.area) return say("state.nothing");
  const values = { place: place + 1, count: candidates.length, score: score?.toFixed(2), area: mask.area.toLocaleString(language.current) };
  say(score == null ? "state.maskless" : candidates.length > 1 ? "state.mask" : "state.oneMask", values);
}

function chooseMask(id, place) {
  const object = annotation.objects.find((one) => one.id === id);
  const shown = answers.shown(object);
  if (!shown || shown.stale || place >= shown.candidates.length || place === shown.place) return;
  annotation.change(id, { choice: place });
  tellMask();
}

/** The three ambiguous masks besides the one that clearer prompts have given. */
async function askOthers(id) {
  const { prompts } = annotation.objects.find((object) => object.id === id);
  const first = answers.get(prompts);
  if (first?.length !== 1 || prompts.kept) return;
  try {
    const [masks] = await picture.remote.masks([prompts], true);
    if (annotation.active?.prompts !== prompts) return;
    answers.put(prompts, [...first, ...candidatesOf(masks)]);
    annotation.change(id, { choice: 0 });
    tellMask();
  } catch (error) {
    report(error, () => askOthers(id));
  }
}

function nextMask() {
  const { active } = annotation;
  const shown = active && answers.shown(active);
  if (!shown || shown.stale) return;
  if (shown.candidates.length === 1) askOthers(active.id);
  else chooseMask(active.id, (shown.place + 1) % shown.candidates.length);
}

// ---- everything, and classes

function setMode(wanted) {
  mode = picture && wanted !== mode ? wanted : "click";
  stage.hasBoxes = mode === "click";
  stage.setHighlight(null);
  if (mode === "classes" && !layers.classes) findClasses();
  if (mode === "click" && !isWaiting()) tellMask();
  render();
}

const layer = () => layers[mode] ?? null;

/** Begin a layer; its work can be cancelled as long as it runs. */
function startLayer(kind) {
  layers[kind]?.ending.abort();
  const made = { items: [], ending: new AbortController(), isRunning: true };
  layers[kind] = made;
  made.tell = (progress) => layers[kind] === made && showJob({ progress, cancel: () => made.ending.abort() });
  made.tell(NaN);
  return made;
}

/** Run the work of a layer; says how it ended if it is still the one that is shown. */
async function runLayer(kind, made, work, again) {
  render();
  try {
    await work(made.ending.signal);
    if (layers[kind] === made) say(kind === "everything" ? "state.foundAll" : "state.classed", { n: made.items.length });
  } catch (error) {
    if (layers[kind] !== made) return;
    if (made.ending.signal.aborted) say("state.cancelled");
    else report(error, again);
    if (!made.items.length) delete layers[kind];
  } finally {
    made.isRunning = false;
    if ((layers[kind] ?? made) === made) showJob(null);
    render();
  }
}

function findEverything() {
  if (!picture?.remote) return;
  say("state.finding");
  const made = startLayer("everything");
  const use = (event) => {
    if (made.ending.signal.aborted) return;
    if (event.type === "record") addRecord(made, event);
    if (event.type === "progress") made.tell(event.points / event.of);
  };
  const restarted = () => {
    made.items = [];
    made.tell(NaN);
  };
  const options = { points_per_side: Number($("detail").value) };
  return runLayer("everything", made, (signal) => picture.remote.everything(options, { signal, use, restarted }), findEverything);
}

function addRecord(made, { segmentation, predicted_iou: score }) {
  const mask = new Mask(segmentation);
  made.items.push({ mask, score, name: null, color: COLORS[made.items.length % COLORS.length], prompts: keptPrompts(mask, score) });
  if (!made.isPainted) requestAnimationFrame(() => render((made.isPainted = false)));
  made.isPainted = true;
}

const hex = (color) => `#${color.map((value) => value.toString(16).padStart(2, "0")).join("")}`;

function findClasses() {
  say("state.classing");
  const made = startLayer("classes");
  return runLayer("classes", made, async (signal) => {
    const { classes } = await nameClasses(service, picture.blob, $("semantic-model").value, signal);
    const found = classes.filter((one) => one.area > 0).sort((a, b) => b.area - a.area);
    made.items = found.map(({ name, color, share, segmentation }) => {
      const mask = new Mask(segmentation);
      return { mask, score: null, name, share, color: hex(color), prompts: keptPrompts(mask, null) };
    });
  }, findClasses);
}

/** The smallest mask of the layer that holds a pixel. */
function itemAt([x, y]) {
  const holding = (layer()?.items ?? []).filter(({ mask }) => mask.has(x, y));
  return holding.reduce((best, item) => (best && best.mask.area <= item.mask.area ? best : item), null);
}

const keptAs = (item) => annotation.objects.find((object) => object.prompts === item.prompts);

function keepAt(x, y) {
  const item = itemAt([x, y]);
  if (item) toggleKept(item);
}

function toggleKept(item) {
  const kept = keptAs(item);
  if (kept) annotation.remove(kept.id);
  else annotation.add({ name: item.name ?? newName(), prompts: item.prompts, color: item.name ? item.color : undefined });
  say(kept ? "state.dropped" : "state.kept", { name: (kept ?? annotation.active).name });
}

function keepAll() {
  const left = layer().items.filter((item) => !keptAs(item));
  if (left.length) annotation.add(...left.map(({ prompts, color }, place) => ({ name: newName(place), prompts, color })));
}

function point(item) {
  $("readout").textContent = item?.name ?? "";
  stage.setHighlight(item && { mask: item.mask, color: "#ffffff", opacity: 0.35 });
}

// ---- the pointer over the picture

let hovered = null;
let isPreviewing = false;

function hover(place) {
  hovered = place;
  if (mode !== "click") return point(place && itemAt(place));
  const { active } = annotation;
  const isFree = !active || active.prompts.kept || isEmpty(active.prompts);
  if (!place || !$("preview").checked || !isFree || !picture.remote) return stage.setHighlight(null);
  if (!isPreviewing) preview();
}

/** Ask for the mask under the pointer, one question at a time, as long as it moves. */
async function preview() {
  isPreviewing = true;
  try {
    for (let asked = null; hovered && hovered !== asked; ) {
      asked = hovered;
      const [[best]] = await picture.remote.masks([{ points: [[...asked.map(Math.floor), 1]], box: null }], "best");
      const isWanted = hovered && mode === "click" && $("preview").checked;
      stage.setHighlight(isWanted ? { mask: new Mask(best.segmentation), color: "#ffffff", opacity: 0.3, dashed: true } : null);
    }
  } catch {
    // A preview that fails is none; the click says what is wrong.
  } finally {
    isPreviewing = false;
  }
}

// ---- files

const hasUnsaved = () => annotation.objects !== savedObjects && annotation.objects.some((object) => answers.shown(object)?.mask.area);

async function save() {
  const entries = annotation.objects.map((object) => ({ object, shown: answers.shown(object) })).filter(({ shown }) => shown && !shown.stale && shown.mask.area);
  const items = entries.filter(({ object }) => !object.hidden).map(({ object: { name, color }, shown: { mask, score } }) => ({ name, color, mask, score }));
  if (!items.length) return say("state.nothingToSave", {}, { isError: true });
  const source = { stem: safeStem(picture.name), fileName: picture.name, width: items[0].mask.width, height: items[0].mask.height, blob: picture.shown };
  try {
    const file = await FORMATS[$("format").value](source, items);
    download(file);
    savedObjects = annotation.objects;
    const left = entries.length - items.length;
    say(left ? "state.savedHidden" : "state.saved", { name: file.name, n: left });
  } catch (error) {
    if (error instanceof RangeError) fail("too_large_here");
    else report(error);
  }
}

// ---- the screen

function changed() {
  askMissing();
  render();
}

function shapesOf(entries) {
  const faint = mode === "click" ? 1 : 0.6;
  const objects = entries.filter(({ object, shown }) => shown && !object.hidden).sort((a, b) => a.isActive - b.isActive);
  const drawn = objects.map(({ object: { color }, shown, isActive }) => {
    return { mask: shown.mask, color, opacity: shown.stale ? 0.25 : isActive ? 0.5 : 0.4 * faint, outline: isActive || mode !== "click" };
  });
  const found = (layer()?.items ?? []).filter((item) => !keptAs(item)).sort((a, b) => b.mask.area - a.mask.area);
  return [...found.map(({ mask, color }) => ({ mask, color, opacity: 0.45, outline: false })), ...drawn];
}

function render() {
  const { active, objects } = annotation;
  const entries = objects.map((object) => ({ object, shown: answers.shown(object), failed: answers.failed.has(object.prompts), isActive: object === active }));
  const { points = [], box = null } = (mode === "click" && active && !active.hidden && active.prompts) || {};
  stage.show(shapesOf(entries), { points, boxes: box ? [box] : [] });
  list.show(entries, picture, (chosenModel()?.masks ?? 3) > 1);
  $("no-objects").hidden = !picture || objects.length > 0;
  $("undo").disabled = !annotation.past.length;
  $("redo").disabled = !annotation.future.length;
  $("new-object").disabled = !picture;
  $("download").disabled = !entries.some(({ shown }) => shown);
  const hasPrompts = picture && (promptable().length > 0 || !models.length);
  for (const button of document.querySelectorAll("#tools [data-tool]")) {
    button.setAttribute("aria-pressed", String(mode === "click" && stage.tool === button.dataset.tool));
    button.disabled = button.dataset.tool === "pan" ? !picture : !hasPrompts;
  }
  for (const button of document.querySelectorAll("#tools [data-mode]")) {
    button.setAttribute("aria-pressed", String(mode === button.dataset.mode));
    button.disabled = button.dataset.mode === "everything" ? !hasPrompts : !picture;
  }
  stage.element.dataset.tool = mode === "click" ? stage.tool : "keep";
  renderLayer();
}

let legendOf = null;

function renderLayer() {
  const current = layer();
  const items = current?.items ?? [];
  $("layer").hidden = mode === "click";
  $("search").hidden = mode !== "everything";
  $("find").disabled = Boolean(current?.isRunning);
  $("layer-title").textContent = mode === "click" ? "" : t(mode);
  $("layer-text").textContent = items.length ? t(mode === "everything" ? "keepHintOf" : "keepHint", { n: items.length }) : "";
  $("semantic-model").hidden = mode !== "classes" || semantic().length < 2;
  $("keep-all").hidden = mode !== "everything" || !items.length;
  const legend = mode === "classes" ? items : [];
  if (legend !== legendOf && (legend.length || legendOf?.length)) showLegend($("legend"), legend, { pick: toggleKept, point });
  legendOf = legend;
  legend.forEach((item, place) => $("legend").children[place].firstChild.setAttribute("aria-pressed", String(Boolean(keptAs(item)))));
}

function showZoom() {
  $("zoom-now").textContent = `${Math.round(100 * stage.view.scale)}%`;
}

function renderLanguage() {
  document.documentElement.lang = language.current;
  $("language").textContent = language.current === "en" ? "中文" : "English";
  $("language").lang = language.current === "en" ? "zh" : "en";
  translate(document.body);
  showStatus();
  render();
}

// ---- keys

function step(by) {
  const { objects, active } = annotation;
  if (!objects.length) return;
  const place = objects.indexOf(active);
  annotation.activate(objects[(place + by + objects.length) % objects.length].id);
  tellMask();
}

const withActive = (use) => annotation.active && use(annotation.active);
const atCursor = (label) => {
  if (!stage.cursor) return stage.moveCursor(0, 0);
  press(...stage.cursor, label);
};

function leave() {
  if (stage.cancel()) return;
  if (cancelJob()) return;
  if (mode !== "click") return setMode("click");
  stage.hideCursor();
}

const undo = () => annotation.undo() && say("state.undone");
const redo = () => annotation.redo() && say("state.redone");

const KEYS = {
  n: newObject,
  h: () => withActive(({ id, hidden }) => annotation.change(id, { hidden: !hidden })),
  delete: () => withActive(({ id }) => removeObject(id)),
  backspace: () => withActive(({ id }) => removeObject(id)),
  f2: () => document.querySelector("#list [aria-current] .name")?.select(),
  "[": () => step(-1),
  "]": () => step(1),
  pageup: () => step(-1),
  pagedown: () => step(1),
  c: nextMask,
  e: () => document.querySelector("[data-mode=everything]").click(),
  l: () => semantic().length && setMode("classes"),
  p: () => $("preview").click(),
  d: save,
  o: () => $("file").click(),
  "?": () => openHelp(semantic().length > 0),
  "+": () => stage.zoom(1.5),
  "=": () => stage.zoom(1.5),
  "-": () => stage.zoom(1 / 1.5),
  0: () => stage.fit(),
  escape: leave,
  ...Object.fromEntries([1, 2, 3, 4].map((n) => [n, () => withActive(({ id }) => chooseMask(id, n - 1))])),
};

/** Keys that mean something only while nothing but the picture has the focus. */
const STAGE_KEYS = {
  arrowleft: (event) => stage.moveCursor(-1, 0, event.shiftKey),
  arrowright: (event) => stage.moveCursor(1, 0, event.shiftKey),
  arrowup: (event) => stage.moveCursor(0, -1, event.shiftKey),
  arrowdown: (event) => stage.moveCursor(0, 1, event.shiftKey),
  enter: (event) => atCursor(event.altKey || stage.tool === "exclude" ? 0 : 1),
  x: () => atCursor(0),
  b: () => (stage.cursor && mode === "click" ? stage.boxCorner() : stage.moveCursor(0, 0)),
  " ": () => stage.setSpace(true),
};

document.addEventListener("keydown", (event) => {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input:not([type=checkbox]), select")) return;
  // By its place where the layout has other letters.
  const key = (/^[!-~ ]+$/.test(event.key) ? event.key : event.code.replace("Key", "")).toLowerCase();
  let use = null;
  if (event.ctrlKey || event.metaKey) use = { z: event.shiftKey ? redo : undo, y: redo }[key];
  else if (picture && event.target.closest("#stage, body") && !event.target.closest("button, aside")) use = STAGE_KEYS[key];
  if (!use && !event.ctrlKey && !event.metaKey && !event.altKey) use = KEYS[key];
  if (!use || (!picture && !["o", "?", "escape"].includes(key))) return;
  event.preventDefault();
  use(event);
});
document.addEventListener("keyup", (event) => event.key === " " && stage.setSpace(false));
window.addEventListener("blur", () => stage.setSpace(false));

// ---- buttons, drops and pastes

const clicks = {
  open: () => $("file").click(),
  choose: () => $("file").click(),
  sample: openSample,
  "use-sample": openSample,
  help: () => openHelp(semantic().length > 0),
  undo,
  redo,
  "new-object": () => {
    newObject();
    $("stage").focus();
  },
  find: findEverything,
  "keep-all": keepAll,
  download: save,
  retry,
  cancel: cancelJob,
  "zoom-in": () => stage.zoom(1.5),
  "zoom-out": () => stage.zoom(1 / 1.5),
  "zoom-fit": () => stage.fit(),
  language: () => {
    language.switch();
    renderLanguage();
  },
};
for (const [id, use] of Object.entries(clicks)) $(id).onclick = use;

for (const button of document.querySelectorAll("#tools [data-tool]")) {
  button.onclick = () => {
    stage.tool = button.dataset.tool;
    setMode("click");
  };
}
for (const button of document.querySelectorAll("[data-mode]")) {
  button.onclick = () => {
    setMode(button.dataset.mode);
    if (mode === "everything" && !layers.everything) findEverything();
  };
}

$("file").onchange = () => {
  openFirst($("file").files);
  $("file").value = "";
};
$("model").onchange = () => {
  close();
  if (picture) {
    picture.remote = null;
    encode();
  }
  changed();
};
$("semantic-model").onchange = findClasses;
$("preview").onchange = () => stage.setHighlight(null);

document.addEventListener("paste", (event) => openFirst(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop-now").hidden = ![...event.dataTransfer.types].includes("Files");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || ($("drop-now").hidden = true));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop-now").hidden = true;
  openFirst(event.dataTransfer.files);
});
window.addEventListener("online", retry);
window.addEventListener("beforeunload", (event) => hasUnsaved() && event.preventDefault());

renderLanguage();
connect();
