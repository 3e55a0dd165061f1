// SPDX-License-Identifier: Apache-2.0
// The line below the picture: what is going on, what went wrong, and what can be done about it.

import { ServiceError } from "./service.js";
import { t } from "./strings.js";

const $ = (id) => document.getElementById(id);

let said = { path: "state.starting" };
/** What runs beside anything else: {progress, cancel}. */
let job = null;

/** Show words at a path of the strings; with them a progress from 0 to 1 (NaN: unknown), and how to try again. */
export function say(path, values = {}, { text = null, isError = false, progress = null, retry = null } = {}) {
  said = { path, values, text, isError, progress, retry };
  showStatus();
}

/** Show the progress of a job that can be cancelled, whatever else is said; null when it has ended. */
export function showJob(running) {
  job = running;
  showStatus();
}

export function showStatus() {
  const { path, values, text, isError, retry } = said;
  const words = text ?? t(path, values) ?? "";
  // Said again, it would be read out again.
  if ($("status").textContent !== words) $("status").textContent = words;
  document.querySelector("footer").classList.toggle("error", Boolean(isError));
  const progress = said.progress ?? job?.progress ?? null;
  $("progress").hidden = progress === null;
  if (Number.isNaN(progress)) $("progress").removeAttribute("value");
  else if (progress !== null) $("progress").value = progress;
  $("retry").hidden = !retry;
  $("cancel").hidden = !job;
}

export const isWaiting = () => said.progress != null;

export const retry = () => said.retry?.();

/** Cancel the job that runs; return whether there was one. */
export function cancelJob() {
  job?.cancel();
  return job !== null;
}

export const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

/** Say what is wrong by one of our own codes. */
export const fail = (code, values = {}) => say(`error.${code}`, values, { isError: true });

/** Say what went wrong: in our words where we have some, in the service's own otherwise. */
export function report(error, again = null) {
  if (!(error instanceof ServiceError)) console.error(error);
  const { code = "unknown", message = "", limit = null } = error instanceof ServiceError ? error : {};
  const values = limit ? { found: megabytes(limit.found), accepted: megabytes(limit.accepted) } : {};
  const isKnown = t(`error.${code}`) !== undefined;
  say(`error.${isKnown ? code : "unknown"}`, values, { text: isKnown ? null : message || null, isError: true, retry: again });
}
