// The viewer's page: lists scans, draws them with NiiVue, takes dropped files, segments, downloads.

import { Planes } from "./niivue_host.js";

const byId = (id) => document.getElementById(id);
const token = location.hash.slice(1);
let session, planes, scan, layers = {}, place = [0, 0, 0], shown = 0;

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { "x-unigan-token": token } });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({ text: `${answer.status} ${answer.statusText}` }));
  throw new Error(told.text);
}
function say(text) { byId("status").textContent = text; }
function complain(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error ? error.message ?? String(error) : "";
  if (error) say("");
}
// Runs an action; what goes wrong is shown, with its code.
async function trying(action) {
  complain(null);
  try { await action(); } catch (error) { complain(error); }
}
// What changes the layers goes one after the other, however fast a person clicks.
let turn = Promise.resolve();
const inTurn = (work) => (turn = turn.catch(() => {}).then(work));
const modality = () => byId("modality").value;
const query = () => (modality() ? `?modality=${encodeURIComponent(modality())}` : "");

// Colours for NiiVue: four bytes for each value from 0 to the largest.
function lookup(legend) {
  const most = Math.max(1, ...legend.map((row) => row.value));
  const lut = new Array(4 * (most + 1)).fill(0), labels = new Array(most + 1).fill("");
  for (const { value, name, colour } of legend) {
    const rgb = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    lut.splice(4 * value, 4, ...rgb, 255);
    labels[value] = name;
  }
  return { lut, labels, min: 0, max: most };
}
function legend(volumes = {}) {
  const rows = session.labels[session.model ? "prediction" : "label"];
  const first = rows.filter((row, at) => rows.findIndex((r) => r.name === row.name) === at);
  const body = byId("legend").tBodies[0];
  const named = first.length <= 50;
  byId("legend").hidden = !named;
  if (!named) return;
  body.replaceChildren(...first.map(({ name, colour }) => {
    const row = document.createElement("tr");
    const key = document.createElement("span"), ml = document.createElement("td");
    key.className = "key";
    key.style.background = colour;
    const head = document.createElement("td");
    head.append(key, name);
    ml.textContent = volumes[name] == null ? "–" : volumes[name].toFixed(2);
    row.append(head, ml);
    return row;
  }));
}

function moved(data) {
  place = data.vox.map(Math.round);
  place.forEach((at, axis) => { byId(`plane-${axis}`).value = at; });
  const mm = data.mm.slice(0, 3).map((x) => x.toFixed(1)).join(", ");
  const names = { [layers.label?.get("id")]: "label", [layers.prediction?.get("id")]: "prediction" };
  const values = data.values.map(({ id, value }) => {
    const what = names[id];
    if (!what) return `scan ${Number(value.toPrecision(5))}`;
    const row = session.labels[what].find((r) => r.value === Math.round(value));
    return `${what} ${row ? row.name : "background"}`;
  });
  byId("place").textContent = `${mm} mm: ${values.join(", ")}`;
}

function opacity(what) {
  return byId(`${what}-on`).checked ? byId(`${what}-opacity`).value / 100 : 0;
}
async function layer(what, path) {
  const bytes = await (await ask(path)).arrayBuffer();
  const options = { colormap_label: lookup(session.labels[what]), opacity: opacity(what) };
  layers[what] = await planes.put(bytes, options, [layers[what]]);
  for (const part of ["on", "opacity"]) byId(`${what}-${part}`).disabled = false;
}
function clear() {
  for (const what of ["label", "prediction"])
    for (const part of ["on", "opacity"]) byId(`${what}-${part}`).disabled = true;
  byId("download").hidden = true;
  legend();
}
function show(number) {
  const mine = ++shown;
  return inTurn(() => mine === shown && showNow(number));
}
async function showNow(number) {
  scan = session.scans.find((each) => each.number === number);
  byId("scan").value = number;
  byId("modality").value = scan.modality && session.model?.modalities.includes(scan.modality)
    ? scan.modality : "";
  byId("segment").disabled = !session.model;
  say(`Reading ${scan.name} …`);
  const bytes = await (await ask(`api/scans/${number}/image.nii`)).arrayBuffer();
  clear();
  if (planes) {
    const before = Object.values(layers);
    layers = {};
    layers.scan = await planes.put(bytes, {}, before);
    layers.scan.dims.slice(1, 4).forEach((size, axis) => { byId(`plane-${axis}`).max = size - 1; });
    for (const [id, key] of [["low", "cal_min"], ["high", "cal_max"]])
      byId(id).value = Number(layers.scan.get(key).toPrecision(4));
    if (scan.label) await layer("label", `api/scans/${number}/label.nii`);
    if (scan.prediction) await layer("prediction", `api/scans/${number}/prediction.nii`);
    planes.step(0, 0, 0);
  }
  say([scan.name, scan.modality, scan.split].filter(Boolean).join(", "));
}
function list() {
  byId("scan").replaceChildren(...session.scans.map((each) => {
    const told = [each.name, each.modality, each.split, each.dropped ? "dropped" : null];
    return new Option(told.filter(Boolean).join(" · "), each.number);
  }));
}

async function take(file) {
  if (!file) return;
  say(`Taking ${file.name} …`);
  if (file.size > session.most_bytes)
    throw new Error(`KUG-S03 ${file.name}: found ${file.size} bytes, expected ${session.most_bytes} at most.`);
  const path = `api/scans?name=${encodeURIComponent(file.name)}`;
  const told = await (await ask(path, { method: "POST", body: file })).json();
  session = await (await ask("api/session")).json();
  list();
  await show(told.number);
}
async function segment() {
  const { number, name } = scan, asked = query(), told = modality() || "a scan of no known modality";
  byId("segment").disabled = true;
  byId("download").hidden = true;
  const start = performance.now();
  const clock = setInterval(() => {
    say(`Segmenting ${name} … ${Math.round((performance.now() - start) / 1000)} s`);
  }, 500);
  try {
    const made = await (await ask(`api/scans/${number}/segment${asked}`, { method: "POST" })).json();
    await inTurn(async () => {
      if (scan.number !== number) return;
      if (planes) {
        await layer("prediction", `api/scans/${number}/prediction.nii${asked}`);
        planes.step(0, 0, 0);
      }
      legend(made.ml);
      await offer(number, asked);
      clearInterval(clock);
      say(`Segmented ${name} in ${made.seconds} s, as ${told}.`);
    });
  } finally {
    clearInterval(clock);
    byId("segment").disabled = false;
  }
}
// The token goes in a header, which a plain link cannot send: the file waits in this page.
async function offer(number, asked) {
  const answer = await ask(`api/scans/${number}/download${asked}`);
  const name = /filename\*?=(?:utf-8'')?"?([^";]+)/i.exec(answer.headers.get("content-disposition"));
  const link = byId("download");
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name ? decodeURIComponent(name[1]) : "prediction.nii.gz";
  link.hidden = false;
}

function wire() {
  byId("scan").addEventListener("change", () => trying(() => show(Number(byId("scan").value))));
  for (const [id, step] of [["previous", -1], ["next", 1]])
    byId(id).addEventListener("click", () => trying(async () => {
      const at = session.scans.indexOf(scan) + step;
      if (session.scans[at]) await show(session.scans[at].number);
    }));
  byId("file").addEventListener("change", () => trying(() => take(byId("file").files[0])));
  byId("segment").addEventListener("click", () => trying(segment));
  for (const kind of ["dragenter", "dragover"])
    addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("over"); });
  for (const kind of ["dragleave", "drop"])
    addEventListener(kind, () => document.body.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    trying(() => take(event.dataTransfer.files[0]));
  });
  for (const what of ["label", "prediction"])
    for (const part of ["on", "opacity"])
      byId(`${what}-${part}`).addEventListener("input", () => layers[what]?.set("opacity", opacity(what)));
  byId("outline").addEventListener("input", () => {
    planes?.option("atlasOutline", byId("outline").checked ? 1 : 0);
  });
  byId("radiological").addEventListener("input", () => {
    planes?.option("isRadiologicalConvention", byId("radiological").checked);
  });
  for (const [id, key] of [["low", "cal_min"], ["high", "cal_max"]])
    byId(id).addEventListener("change", () => layers.scan?.set(key, byId(id).valueAsNumber));
  [0, 1, 2].forEach((axis) => byId(`plane-${axis}`).addEventListener("input", () => {
    const step = [0, 0, 0];
    step[axis] = Number(byId(`plane-${axis}`).value) - place[axis];
    planes?.step(...step);
  }));
}
async function start() {
  session = await (await ask("api/session")).json();
  document.title = byId("title").textContent = session.title || "Viewer";
  byId("notice").textContent = session.notice;
  const { model } = session;
  byId("model").textContent = model
    ? `Model: ${model.name} (${model.kind}), for ${model.modalities.join(", ")}.`
    : "No model was given, so nothing can be segmented.";
  for (const name of model?.modalities ?? []) byId("modality").add(new Option(name, name));
  list();
  legend();
  wire();
  if (document.createElement("canvas").getContext("webgl2")) {
    const niivue = await import("./niivue.js");
    planes = await Planes.on(byId("view"), niivue.default, moved);
    byId("view").querySelector("canvas")?.setAttribute("aria-label", "Three planes of the scan");
  } else {
    byId("view").hidden = true;
    complain(new Error("This browser has no WebGL 2, so nothing is drawn. Segmenting and downloading work."));
  }
  if (session.scans.length) await show(session.scans[0].number);
  else say("Drop a scan to begin.");
  document.body.dataset.ready = "yes";
}
addEventListener("unhandledrejection", (event) => complain(event.reason));
trying(start);
