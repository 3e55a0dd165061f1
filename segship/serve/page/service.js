// SPDX-License-Identifier: Apache-2.0
// The service as the page sees it: requests that wait when asked to, and one picture that is uploaded again when the
// service no longer has it.

const MOST_TRIES = 6;
const LONGEST_WAIT_S = 30;
const KEY = "segship-key";

/** What the service or the network answered instead of a result. */
export class ServiceError extends Error {
  constructor({ code, message = "", limit = null, retryable = true }, status = 0) {
    super(message);
    this.code = String(code);
    this.status = status;
    this.limit = limit;
    this.retryable = retryable;
  }

  /** Whether the service has forgotten the picture: it is uploaded again. */
  get isForgotten() {
    return this.code === "embedding_evicted" || this.code === "unknown_image" || this.status === 410;
  }
}

const offline = () => new ServiceError({ code: "network" });

/** Run a network call; what fetch throws without an answer becomes an error with the code "network". */
async function reach(call, signal) {
  try {
    return await call();
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof ServiceError) throw error;
    throw offline();
  }
}

async function readError(response) {
  const answer = await response.json().catch(() => ({}));
  const error = typeof answer?.error === "object" && answer.error ? answer.error : {};
  return new ServiceError({ code: error.code ?? `http_${response.status}`, message: String(error.message ?? ""), limit: error.limit, retryable: error.retryable }, response.status);
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

/** Seconds until another try; null if there is none. */
function patience(error, response, tried) {
  if (![429, 503].includes(error.status) || !error.retryable || tried >= MOST_TRIES) return null;
  const asked = Number(response.headers.get("Retry-After") ?? NaN);
  const seconds = asked >= 0 ? asked : 0.5 * 2 ** tried;
  // A bit more than asked, and not the same for everybody.
  return seconds <= LONGEST_WAIT_S ? Math.max(seconds, 0.1) * (1 + 0.2 * Math.random()) : null;
}

/** Send a file with news of how much of it is sent, which fetch cannot tell. */
function upload(path, { body, headers, signal, progress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => progress(event.lengthComputable ? event.loaded / event.total : 0);
    request.upload.onload = () => progress(1);
    request.onload = () => {
      const wait = request.getResponseHeader("Retry-After");
      resolve(new Response(request.responseText, { status: request.status, headers: wait ? { "Retry-After": wait } : {} }));
    };
    request.onerror = () => reject(offline());
    request.onabort = () => reject(signal.reason);
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}

export class Service {
  /** askKey(error) -> Promise of a key or null; waiting(seconds) is told of every pause. */
  constructor({ askKey, waiting }) {
    this.askKey = askKey;
    this.waiting = waiting;
    this.key = sessionStorage.getItem(KEY);
    this.asking = null;
  }

  /** Return the answer to a request; waits and repeats when the service says so, and asks for the key. */
  async send(path, { method = "GET", body, type, signal, progress } = {}) {
    for (let tried = 1; ; tried++) {
      const used = this.key;
      const headers = { ...(type && { "Content-Type": type }), ...(used && { Authorization: `Bearer ${used}` }) };
      const call = progress
        ? () => upload(path, { body, headers, signal, progress })
        : () => fetch(path, { method, body, headers, signal, cache: "no-store" });
      signal?.throwIfAborted();
      const response = await reach(call, signal);
      if (response.ok) return response;
      const error = await readError(response);
      if (error.status === 401 && (await this.hasOtherKey(used, error))) continue;
      const seconds = patience(error, response, tried);
      if (seconds === null) throw error;
      this.waiting(seconds);
      await sleep(seconds, signal);
    }
  }

  async hasOtherKey(used, error) {
    if (this.key === used) {
      this.asking ??= this.askKey(error).finally(() => (this.asking = null));
      const key = await this.asking;
      if (key !== null) {
        this.key = key;
        sessionStorage.setItem(KEY, key);
      }
    }
    return this.key !== used;
  }

  async json(path, options = {}) {
    const response = await this.send(path, options);
    return reach(() => response.json(), options.signal);
  }

  post(path, value, signal) {
    return this.json(path, { method: "POST", body: JSON.stringify(value), type: "application/json", signal });
  }

  /** Call use(line) for every line of JSON as it comes; the last one must be an end. */
  async lines(path, value, { signal, use }) {
    const body = JSON.stringify(value);
    const response = await this.send(path, { method: "POST", body, type: "application/json", signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let ended = false;
    for (;;) {
      const { value: text, done } = await reach(() => reader.read(), signal);
      const lines = (rest + (text ?? "")).split("\n");
      rest = done ? "" : lines.pop();
      for (const line of lines.filter((one) => one.trim())) {
        const event = JSON.parse(line);
        if (event.type === "error") throw new ServiceError(event.error ?? {});
        ended ||= event.type === "end";
        use(event);
      }
      if (done) break;
    }
    if (!ended) throw offline();
  }
}

/** A picture in the service: uploaded once, and again when the service has forgotten it. */
export class RemotePicture {
  /** progress(fraction sent, whether it was there before) is told of uploads. */
  constructor(service, blob, model, progress) {
    Object.assign(this, { service, blob, model, progress });
    this.ending = new AbortController();
    this.uploads = 0;
    this.upload();
  }

  /** The promise of {id, width, height, notes, ...} is `ready`. */
  upload() {
    const path = `/v1/images?model=${encodeURIComponent(this.model)}`;
    const { signal } = this.ending;
    const type = "application/octet-stream";
    const isAgain = this.uploads++ > 0;
    const progress = (fraction) => this.progress(fraction, isAgain);
    this.failed = false;
    this.ready = this.service.json(path, { method: "POST", body: this.blob, type, signal, progress });
    this.ready.catch(() => (this.failed = true));
  }

  close() {
    this.ending.abort();
  }

  /** Return what send(id) gives; once more with a new id where the old one is forgotten. */
  async ask(send, signal) {
    if (this.failed) this.upload();
    const asked = this.ready;
    const { id } = await asked;
    signal?.throwIfAborted();
    try {
      return await send(id);
    } catch (error) {
      if (!(error instanceof ServiceError && error.isForgotten)) throw error;
    }
    // Of several that find it forgotten the first uploads.
    if (this.ready === asked) this.upload();
    const again = await this.ready;
    signal?.throwIfAborted();
    return send(again.id);
  }

  /** The picture as the service reads it: upright, in a file that browsers show. */
  shown() {
    const { signal } = this.ending;
    return this.ask(async (id) => {
      const response = await this.service.send(`/v1/images/${id}/picture`, { signal });
      return reach(() => response.blob(), signal);
    }, signal);
  }

  /** Candidates of each of some objects' prompts: [[{predicted_iou, segmentation, ...}, ...], ...]. */
  async masks(prompts, choice, signal) {
    const objects = prompts.map(({ points, box }) => ({
      ...(points.length && { points: points.map(([x, y]) => [x, y]), labels: points.map((point) => point[2]) }),
      ...(box && { boxes: [box] }),
    }));
    const question = { ...(objects.length === 1 ? objects[0] : { objects }), multimask_output: choice };
    const answer = await this.ask((id) => this.service.post(`/v1/images/${id}/masks`, question, signal), signal);
    return answer.objects.map((object) => object.masks);
  }

  /** Stream every mask of the picture: use(event) of each line, restarted() before it begins anew. */
  everything(options, { signal, use, restarted }) {
    return this.ask((id) => {
      restarted();
      return this.service.lines(`/v1/images/${id}/everything`, options, { signal, use });
    }, signal);
  }
}

/** The classes of a picture: [{name, color, area, share, segmentation}, ...]. */
export function nameClasses(service, blob, model, signal) {
  const path = `/v1/semantic?model=${encodeURIComponent(model)}&format=rle`;
  return service.json(path, { method: "POST", body: blob, type: "application/octet-stream", signal });
}
