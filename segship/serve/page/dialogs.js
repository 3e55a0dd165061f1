// SPDX-License-Identifier: Apache-2.0
// What opens over the page: the help, the question for a key, the question whether masks may be lost.
//
// Without forms: the page's policy lets none be sent.

import { showHelp } from "./panel.js";
import { t } from "./strings.js";

const $ = (id) => document.getElementById(id);

/** Open a dialog and return what it was closed with; empty if it was left. */
function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** Return the key that the person gives, or null. */
export async function askKey(error) {
  $("key-text").textContent = t(error.code === "unknown_key" ? "keyWrong" : "key");
  $("key").value = "";
  const answer = ask($("key-dialog"));
  $("key").focus();
  return (await answer) || null;
}

function useKey() {
  if ($("key").reportValidity()) $("key-dialog").close($("key").value);
}

/** Return whether masks that were not saved may be lost. */
export async function askLoss() {
  return (await ask($("loss-dialog"))) !== "";
}

export function openHelp(hasClasses) {
  const row = (name) => t(`helpRows.${name}`);
  const both = (...words) => words.join(t("comma"));
  showHelp($("help-tables"), [
    [row("pointer"), [
      [[row("click")], row("includePoint")],
      [[row("rightClick")], row("excludePoint")],
      [[row("drag")], row("drawBox")],
      [[row("wheel")], row("zoom")],
      [[row("spaceDrag")], row("move")],
    ]],
    [row("picture"), [
      [[row("arrows")], row("cross")],
      [["Enter"], row("includePoint")],
      [["X"], row("excludePoint")],
      [["B"], row("boxKeys")],
      [["+", "-", "0"], both(row("zoom"), t("fit"))],
      [["E"], t("everything")],
      ...(hasClasses ? [[["L"], t("classes")]] : []),
      [["P"], t("preview")],
      [["Escape"], row("leave")],
    ]],
    [t("objects"), [
      [["N"], t("newObject")],
      [["1", "2", "3", "C"], row("choice")],
      [["[", "]", "PageUp", "PageDown"], row("neighbors")],
      [["F2"], row("rename")],
      [["H"], both(t("hide"), t("show"))],
      [["Delete"], t("remove")],
      [["Ctrl+Z", "Ctrl+Y"], both(t("undo"), t("redo"))],
      [["O"], t("open")],
      [["D"], t("download")],
    ]],
  ]);
  $("help-dialog").showModal();
}

$("key").onkeydown = (event) => event.key === "Enter" && useKey();
$("use-key").onclick = useKey;
$("lose").onclick = () => $("loss-dialog").close("lose");
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".close").onclick = () => dialog.close("");
  dialog.onclick = (event) => event.target === dialog && dialog.close("");
}
