"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// The table of all cases: few rows at a time, so that thousands cost nothing.
const PAGE = 25;
function caseTable(box, { columns, rows }) {
  const table = box.querySelector("table"), find = box.querySelector("input"), told = box.querySelector("[role=status]");
  const [back, on] = box.querySelectorAll(".turn button"), selects = [...box.querySelectorAll("select")];
  let sorted = -1, down = false, page = 0;
  for (const select of selects) {
    const at = columns.findIndex(([key]) => key === select.name);
    select.dataset.at = at;
    if (at < 0) select.closest("label").hidden = true;
    else for (const value of [...new Set(rows.map((row) => row[at]))]) select.add(new Option(value));
    select.addEventListener("change", () => { page = 0; draw(); });
  }
  const headings = columns.map(([, text], at) => {
    const heading = document.createElement("th"), button = document.createElement("button");
    heading.scope = "col";
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      [sorted, down, page] = [at, sorted === at && !down, 0];
      draw();
    });
    heading.append(button);
    return heading;
  });
  table.tHead.rows[0].replaceChildren(...headings);
  const order = (a, b) => {
    const [x, y] = [a[sorted], b[sorted]];
    // What has no value stands last, whichever way.
    if (x === null || y === null) return (x === null) - (y === null);
    return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) * (down ? -1 : 1);
  };
  function draw() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = rows.filter((row) => {
      const text = row.filter((value) => typeof value === "string").join(" ").toLowerCase();
      return words.every((word) => text.includes(word))
        && selects.every((s) => s.dataset.at < 0 || !s.value || String(row[s.dataset.at]) === s.value);
    });
    if (sorted >= 0) kept = [...kept].sort(order);
    const pages = Math.max(1, Math.ceil(kept.length / PAGE));
    page = Math.min(page, pages - 1);
    const body = document.createDocumentFragment();
    for (const row of kept.slice(page * PAGE, (page + 1) * PAGE)) {
      const line = document.createElement("tr");
      for (const value of row) line.insertCell().textContent = value ?? "–";
      body.append(line);
    }
    table.tBodies[0].replaceChildren(body);
    headings.forEach((heading, at) => {
      if (at === sorted) heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    told.textContent = `${kept.length} of ${rows.length} rows, page ${page + 1} of ${pages}`;
    [back.disabled, on.disabled] = [page === 0, page === pages - 1];
  }
  back.addEventListener("click", () => { page--; draw(); });
  on.addEventListener("click", () => { page++; draw(); });
  find.addEventListener("input", () => { page = 0; draw(); });
  box.hidden = false;
  draw();
}
if (data.cases) caseTable(document.getElementById("case-table"), data.cases);

// Slices: pictures are unpacked when their case comes near the window.
function picture(source) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("a picture of the report is damaged"));
    image.src = source;
  });
}
function pixels(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}
async function planeView(label, plane, colours) {
  const canvas = label.querySelector("canvas"), slider = label.querySelector("input"), place = label.querySelector("span");
  const { width, height, slices } = plane;
  const zoom = Math.max(1, Math.round(384 / Math.max(width, height * plane.aspect)));
  [canvas.width, canvas.height] = [width * zoom, Math.round(height * plane.aspect * zoom)];
  const up = canvas.height / height;
  const [scan, masks] = await Promise.all([picture(plane.scan), picture(plane.masks)]);
  const numbers = pixels(masks), context = canvas.getContext("2d");
  // Edges between pixels of different names, in the colour of the later name.
  function outline(first, channel) {
    const paths = new Map();
    const at = (x, y) => x < 0 || y < 0 || x >= width || y >= height ? 0
      : numbers[4 * ((first + y) * width + x) + channel];
    const edge = (one, other, x0, y0, x1, y1) => {
      if (one === other) return;
      const name = Math.max(one, other);
      if (!paths.has(name)) paths.set(name, new Path2D());
      paths.get(name).moveTo(x0 * zoom, y0 * up);
      paths.get(name).lineTo(x1 * zoom, y1 * up);
    };
    for (let y = 0; y <= height; y++)
      for (let x = 0; x <= width; x++) {
        const here = at(x, y);
        edge(at(x - 1, y), here, x, y, x, y + 1);
        edge(at(x, y - 1), here, x, y, x + 1, y);
      }
    return paths;
  }
  function draw() {
    const first = slider.value * height;
    context.imageSmoothingEnabled = false;
    context.drawImage(scan, 0, first, width, height, 0, 0, canvas.width, canvas.height);
    for (const [channel, what, dash, thick] of [[0, "truth", [], 2], [1, "prediction", [4, 3], 2]]) {
      if (!document.getElementById(`show-${what}`).checked) continue;
      context.setLineDash(dash);
      context.lineWidth = thick;
      for (const [name, path] of outline(first, channel)) {
        context.strokeStyle = colours[name - 1];
        context.stroke(path);
      }
    }
    place.textContent = slices[slider.value];
    canvas.dataset.drawn = slider.value;
  }
  slider.addEventListener("input", draw);
  for (const what of ["truth", "prediction"]) document.getElementById(`show-${what}`).addEventListener("change", draw);
  draw();
}
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    const { planes, colours } = data.overlays[target.dataset.overlay];
    target.querySelectorAll("label").forEach((label, at) => planeView(label, planes[at], colours));
  }
}, { rootMargin: "400px" });
for (const figure of document.querySelectorAll("figure[data-overlay]")) {
  const box = figure.querySelector(".planes");
  for (const plane of data.overlays[figure.dataset.overlay].planes) {
    const label = document.createElement("label"), canvas = document.createElement("canvas");
    const words = document.createElement("div"), place = document.createElement("span"), slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: plane.slices.length - 1, value: plane.middle });
    slider.value = plane.middle;
    place.textContent = plane.slices[plane.middle];
    words.append(`${plane.plane} slice `, place);
    slider.setAttribute("aria-label", `${plane.plane} slice of ${figure.dataset.case}`);
    slider.hidden = plane.slices.length < 2;
    canvas.style.aspectRatio = `${plane.width} / ${plane.height * plane.aspect}`;
    label.append(canvas, words, slider);
    box.append(label);
  }
  near.observe(figure);
}
